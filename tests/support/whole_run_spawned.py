"""A whole run on torch in two processes that the trainer starts itself.

python whole_run_spawned.py SETTING
"""

import json
import os
import sys

from support import whole_run

whole_run.say("is", 0, "pid", os.getpid())
sys.exit(whole_run.live("torch", **json.loads(sys.argv[1]), num_processes=2))

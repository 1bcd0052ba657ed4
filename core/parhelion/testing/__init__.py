"""The checks that this package's own samplers, loaders and backends pass, for yours; needs the extra ``[testing]``."""

from ._case import BackendCase as BackendCase
from ._compare import first_difference as first_difference
from ._compare import last_tree as last_tree
from ._compare import rows_without_clocks as rows_without_clocks
from ._compare import same as same
from ._contract_arrays import ArraysContract as ArraysContract
from ._contract_loader import LoaderContract as LoaderContract
from ._contract_parts import PlacementContract as PlacementContract
from ._contract_parts import RandomnessContract as RandomnessContract
from ._contract_parts import WorldContract as WorldContract
from ._contract_resume import ResumeContract as ResumeContract
from ._contract_trainer import TrainerContract as TrainerContract
from ._loaders import check_loader_resumes as check_loader_resumes
from ._resume import check_sampler_resumes as check_sampler_resumes
from ._strategies import ResumeCase as ResumeCase
from ._strategies import Segment as Segment
from ._strategies import batch_sizes as batch_sizes
from ._strategies import resume_cases as resume_cases
from ._strategies import seeds as seeds
from ._strategies import sizes as sizes
from ._strategies import stop_points as stop_points
from ._strategies import worlds as worlds

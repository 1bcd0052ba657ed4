"""The checks that this package's own samplers and loaders pass, for yours; needs the extra ``[testing]``."""

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

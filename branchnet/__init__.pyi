from .errors import AffinityError as AffinityError
from .errors import BranchnetError as BranchnetError
from .errors import BudgetError as BudgetError
from .errors import BuildError as BuildError
from .errors import CheckpointError as CheckpointError
from .errors import DataError as DataError
from .errors import SpecError as SpecError
from .errors import SplitError as SplitError
from .errors import TrainingError as TrainingError
from .errors import TreeError as TreeError

__version__: str

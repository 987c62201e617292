from multiprocessing.resource_tracker import *
from multiprocessing.resource_tracker import (
    ResourceTracker as ResourceTracker,
    __all__ as __all__,
    getfd as getfd,
    main as main,
)

"""What each Python process that a test starts does first, Ray's and vLLM's included: few collections of cycles.

Most of these processes live for seconds and spend them on imports. Python's collector looks through all modules again
and again meanwhile and once more at the end, which took a tenth of the suite's time.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)

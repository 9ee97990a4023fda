"""pandas, so set that any text of a user stays what it is, whatever else is installed.

Where pyarrow is at hand, pandas keeps texts as UTF-8; a file name on disk need not be UTF-8.
"""

import pandas as pd

pd.set_option("mode.string_storage", "python")

__all__ = ["pd"]

"""Census with its attention calibrated in each way, to be measured side by side (NOTES, entry 13).

`vitcop bench --model llava-onevision-0.5b --methods benchmarks/calibration.py:Uncounted,... --retentions 1/3,1/9`
"""

from vitcop import Census


class Uncounted(Census):
    """As flash attention would have it."""

    default_calibrate = "none"


class Counted(Census):
    """As it is by default."""


class CountedByDistance(Census):
    """With a mask that is another for every query."""

    default_calibrate = "distance"

"""From raw files to clean shards: `mmjax prepare --source=… --output=…`.

    sources/    where rows come from: SOURCES
    kinds/      what a column holds; decoding, measuring, comparing, storing, showing: KINDS
    checks/     what may be wrong with rows: CHECKS
    preparation.py puts the steps together; runners.py says where they run

Importing this package is quick; its modules import what they need.
"""

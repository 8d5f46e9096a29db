"""Data preparation: converts raw files to checked ArrayRecord shards, `mmjax prepare --source=… --output=…`.

    sources/         readers of raw data: SOURCES
    kinds/           column types, which decode, measure, compare, store and show values: KINDS
    checks/          detectors of faulty rows: CHECKS
    preparation.py   the pipeline
    runners.py       local processes or Apache Beam

Importing this package is fast; its modules import what they need.
"""

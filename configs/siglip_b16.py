"""SigLIP B/16 at 256 pixels; both towers have the same size. See `configs/siglip.py`."""

from ml_collections import ConfigDict

from configs.siglip import recipe


def get_config() -> ConfigDict:
    return recipe("B/16", pixels=256, heads=12)

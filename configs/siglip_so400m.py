"""SigLIP So400m/14 at 224 pixels; both towers have the same size. See `configs/siglip.py`."""

from ml_collections import ConfigDict

from configs.siglip import recipe


def get_config() -> ConfigDict:
    return recipe("So400m/14", pixels=224, heads=16)

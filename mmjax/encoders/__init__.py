"""Encoders: what turns the input of one modality into Tokens. A new one is a file here and a line in `ENCODERS`.

An encoder is a `flax.nnx.Module` with a nested dataclass `Config`, made as
`Encoder(config, spec, precision=precision, rngs=rngs)`, where `spec` is the `InputSpec` of what it reads. It is called
as `encoder(input, random)` on an `Input` whose absent values are zeros already, and returns `Tokens` of width
`encoder.width`. `rng` is None outside training. Its attribute `example` is the spec of a small input, with which
`tests/contracts.py` tries it, and `packed_example` that of a small packed one, if it can read rows that several
examples share.
"""

from mmjax.encoders.point_transformer import PointTransformer
from mmjax.encoders.resnet import ResNet
from mmjax.encoders.series_transformer import SeriesTransformer
from mmjax.encoders.spectrogram_resnet import SpectrogramResNet
from mmjax.encoders.spectrogram_transformer import SpectrogramTransformer
from mmjax.encoders.table_transformer import TableTransformer
from mmjax.encoders.text_transformer import TextTransformer
from mmjax.encoders.video_transformer import VideoTransformer
from mmjax.encoders.vit import ViT
from mmjax.encoders.waveform_cnn import WaveformCNN

ENCODERS = {
    "vit": ViT,
    "resnet": ResNet,
    "text_transformer": TextTransformer,
    "spectrogram_transformer": SpectrogramTransformer,
    "spectrogram_resnet": SpectrogramResNet,
    "waveform_cnn": WaveformCNN,
    "table_transformer": TableTransformer,
    "series_transformer": SeriesTransformer,
    "point_transformer": PointTransformer,
    "video_transformer": VideoTransformer,
}

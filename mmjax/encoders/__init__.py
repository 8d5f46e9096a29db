"""Encoders: modules that map the input of one modality to Tokens, by kind in `ENCODERS`.

An encoder is a `flax.nnx.Module` with

- a nested dataclass `Config` of its options;
- a constructor `Encoder(config, spec, precision=precision, rngs=rngs)`, where `spec` is the `InputSpec` of its input;
- a call `encoder(inputs, rng)`, where absent values of the `Input` are zeros and `rng` is None outside training, which
  returns `Tokens`;
- an attribute `width`, the width of these tokens;
- a class attribute `example`, the spec of a small input for `tests/contracts.py`;
- a class attribute `packed_example`, the spec of a small packed input, if the encoder supports packing.

To add an encoder, add a file here and a line in `ENCODERS`.
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

"""CLIP step of PyTorch: `CLIPModel` of transformers with random weights and AdamW, eager or with `torch.compile`."""

from __future__ import annotations

from typing import Any

import contender


def measure(settings: contender.Settings) -> dict[str, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise contender.Missing("pip install torch transformers") from error
    # Set this before any thread starts.
    torch.set_num_threads(settings.cores)
    torch.manual_seed(0)
    config = _config(settings.shape)
    flops = _flops(config, settings) if settings.count else None
    model = transformers.CLIPModel(config).train()
    images, text = contender.random_batch(settings)
    inputs = {"pixel_values": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()}
    inputs["input_ids"] = torch.from_numpy(text).long()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=contender.LEARNING_RATE,
        betas=(contender.OPTIMIZER["b1"], contender.OPTIMIZER["b2"]),
        eps=contender.OPTIMIZER["eps"],
        weight_decay=contender.WEIGHT_DECAY,
    )
    forward = torch.compile(model) if settings.mode == "compiled" else model

    def one() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = forward(**inputs, return_loss=True).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), contender.CLIP)
        optimizer.step()
        return loss.item()

    found = contender.time_steps(one, settings)
    if flops is not None:
        found["flops"] = flops
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    found["versions"] = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return found


def _config(size: contender.Size) -> Any:
    import transformers

    image = {"image_size": size.pixels, "patch_size": size.patch}
    text = {"vocab_size": size.vocabulary, "max_position_embeddings": size.length}
    text |= {"bos_token_id": size.vocabulary - 2, "eos_token_id": size.vocabulary - 1}
    for part, options in (("image", image), ("text", text)):
        width = getattr(size, f"{part}_width")
        options |= {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": size.width}
        options |= {"num_hidden_layers": getattr(size, f"{part}_depth")}
        options |= {"num_attention_heads": getattr(size, f"{part}_heads")}
    return transformers.CLIPConfig(
        text_config=transformers.CLIPTextConfig(**text).to_dict(),
        vision_config=transformers.CLIPVisionConfig(**image).to_dict(),
        projection_dim=size.width,
    )


def _flops(config: Any, settings: contender.Settings) -> int:
    """Returns three times the forward FLOPs counted by PyTorch on meta tensors."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    size, counter = settings.shape, FlopCounterMode(display=False)
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
        images = torch.empty(settings.batch_size, 3, size.pixels, size.pixels)
        text = torch.zeros(settings.batch_size, size.length, dtype=torch.long)
        with counter:
            model(pixel_values=images, input_ids=text)
    return 3 * counter.get_total_flops()


if __name__ == "__main__":
    contender.run(measure)

"""Input pipeline with PyTorch's DataLoader, over the files of a table."""

from __future__ import annotations

import json

import loading

SETTINGS = loading.settings()
ROWS = loading.rows(SETTINGS)


def main() -> None:
    try:
        import torch
        import torch.utils.data
    except ImportError as error:
        print(json.dumps({"missing": f"pip install torch pillow scipy ({error})"}))
        return
    # More threads per worker would compete with the other workers.
    torch.set_num_threads(1)

    class Examples(torch.utils.data.Dataset):
        def __len__(self):
            return len(ROWS)

        def __getitem__(self, index):
            return loading.example(SETTINGS.data, ROWS[index])

    def batches():
        while True:
            yield from torch.utils.data.DataLoader(
                Examples(),
                batch_size=SETTINGS.batch_size,
                shuffle=True,
                num_workers=SETTINGS.workers,
                drop_last=True,
                persistent_workers=False,
            )

    loading.time_batches(batches(), SETTINGS, lambda batch: batch["image"].numpy())


if __name__ == "__main__":
    main()

"""What does a sweep over a million photographs cost, once their pooled vectors are stored?

Processor and wall time and the greatest memory of whole commands, each a process of its own. The
store is what `store build --tokens pooled --pooled-dtype float16 --no-thumbs` would write, with
drawn vectors of which the masses are a noisy function, since so many photographs cannot be drawn
here. Page cache warm.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _bench import context, finish, work_folder
from _scale_files import site_columns
from _scale_page import measure_page
from _scale_plan import measure_plan
from _scale_predict import measure_predict
from _scale_run import run_all

from featurestore import open_writer
from featurestore.format.spec import POOLED, STATS, StoreSpec, TokenSpec, ViewSpec
from featurestore.photos.targets import CSIRO
from featurestore.read.rows import ImageRows
from featurestore.write.columns import catalog_columns

YAML = """
experiment: {{name: scale, seed: 0}}
dataset: {{store: {store}}}
head: {{kind: {kind}}}
trainer: {{num_epochs: {epochs}, batch_size: 256}}
optimization: {{lr: 1e-3, weight_decay: 1e-2}}
cv: {{n_folds: 5}}
inference: {{tta_indices: [0]}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64, help="of the tokens")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--page", action="store_true", help="what `store serve` takes, too")
    parser.add_argument(
        "--predict", action="store_true", help="instead: parts, a merge and a journal of predict"
    )
    parser.add_argument(
        "--plan", action="store_true", help="instead: a plan of 512 parts, one part, their merge"
    )
    parser.add_argument("--dir", type=Path, help="where table, store and runs go")
    options = parser.parse_args()
    with work_folder(options.dir) as folder:
        instead = {"predict": measure_predict, "plan": measure_plan}
        asked = [name for name in instead if vars(options)[name]]
        if not asked:
            finish(measure(options, folder))
            return
        told = {}
        for name in asked:
            (folder / name).mkdir()
            told[name] = instead[name](folder / name, options.images)
        settings = {key: str(value) for key, value in vars(options).items()}
        finish(told | context(settings, ["torch", "numpy", "pandas"]))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Of every command: seconds of the processor and the wall, and the greatest memory in GB."""
    store = folder / "features.h5"
    start = time.process_time()
    write_store(store, options.images, options.width)
    print(f"{'write store':20} {time.process_time() - start:8.2f} s of processor time", flush=True)

    told = run_all(commands(store, options.epochs), folder)
    page = {}
    if options.page:
        (sweep,) = (folder / "runs/ridge").iterdir()
        page = {"page": measure_page(store, sweep, folder)}
    settings = {key: str(value) for key, value in vars(options).items()}
    return {"commands": told, **page, **context(settings, ["torch", "numpy", "pandas"])}


def commands(store: Path, epochs: int) -> dict[str, list[str]]:
    """The words after `biomass` of what is measured; configs lie beside the store."""
    configs = {}
    for kind in ("ridge", "pooled_mlp"):
        configs[kind] = store.with_name(f"{kind}.yaml")
        configs[kind].write_text(YAML.format(store=store, kind=kind, epochs=epochs))
    runs = store.with_name("runs")
    by_kind = {
        f"train {kind}": ["train", "--config", str(config), "--out", str(runs / kind)]
        for kind, config in configs.items()
    }
    return {
        "store info": ["store", "info", str(store)],
        "store stats": ["store", "stats", str(store)],
        "train --plan": ["train", "--config", str(configs["ridge"]), "--plan"],
        **by_kind,
    }


def write_store(path: Path, n_images: int, width: int) -> None:
    """A pooled store in float16 of one view and one tile; sites as `site_columns` draws them."""
    rng = np.random.default_rng(0)
    level_N3 = rng.gamma(2, 1, (n_images, 3)) * (rng.random((n_images, 3)) > 0.2)
    green, dead, clover = (level_N3 * [12, 6, 4]).T
    masses = green, dead, clover, green + clover, green + clover + dead
    frame = pd.DataFrame(
        {
            "image_id": [f"ID{i:09d}" for i in range(n_images)],
            "path": [f"train/ID{i:09d}.jpg" for i in range(n_images)],
            **site_columns(n_images),
            **dict(zip(CSIRO.names, masses, strict=True)),
        }
    )
    tokens = TokenSpec(
        model="drawn",
        weights_sha256="0" * 64,
        layers=(-1,),
        crop="squash",
        tile_height=224,
        tile_width=224,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        patch_size=16,
        n_tiles=1,
        width=width,
        views=(ViewSpec(name="plain"),),
        seed=0,
    )
    spec = StoreSpec(tokens=tokens, thumb=None, columns=catalog_columns(frame))
    spec = spec.changed(has_patches=False, pooled_dtype="float16")
    mix_3F = rng.normal(size=(3, (1 + len(POOLED)) * width))
    with open_writer(path, spec, frame) as writer:
        for image in writer.pending():
            vector_F = level_N3[image] @ mix_3F + rng.normal(size=mix_3F.shape[1])
            vectors_6D = vector_F.reshape(-1, width).astype(np.float16)
            rows = ImageRows(
                cls_VTD=vectors_6D[:1, None],
                patches_VTPD=None,
                pooled_VT5D=vectors_6D[None, None, 1:],
                stats_VS=np.array([[not name.endswith("non_finite") for name in STATS]], float),
                facts={"sha256": f"{image:064x}", "width": 2000, "height": 1000, "status": "ok"},
            )
            writer.put(image, rows)
            writer.commit_if_due()


if __name__ == "__main__":
    main()

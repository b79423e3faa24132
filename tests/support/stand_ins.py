"""Stand-ins for the study's setting: a tiny CLIP and tasks of colours."""

from pathlib import Path

import tiny
from PIL import Image
from safetensors.torch import save_file

from mlflow_breadcrumbs.sources import training
from study import flow, settings

PAIRS = {"warm": ("red", "green"), "cold": ("green", "blue"), "odd": ("blue", "red")}
MISFIT = {"strange": ("green", "red")}
HOW = training.TrainingSettings(steps=12, batch_size=8, learning_rate=3e-3, precision="bfloat16")


def setting(tmp_path: Path) -> flow.Setting:
    """Three tasks in a folder; `misfit.yaml` beside them has a fourth."""
    listed = ["tasks:\n"]
    for number, (task, colours) in enumerate({**PAIRS, **MISFIT}.items()):
        for colour in colours:
            folder = tmp_path / "images" / task / colour
            folder.mkdir(parents=True)
            for index, picture in enumerate(tiny.pixels(colour, 20, number)):
                Image.fromarray(picture).save(folder / f"{index}.png")
        listed.append(f"  - name: {task}\n    images: {{folder: images/{task}}}\n")
    task_file = tmp_path / "tasks.yaml"
    task_file.write_text("".join(listed[:-1]))
    (tmp_path / "misfit.yaml").write_text("".join(listed))
    config_file = tiny.config_file(tmp_path)
    state = tiny.model(tiny.config(tmp_path)).state_dict()
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "base.safetensors")
    return settings.clip(config_file, str(tmp_path / "base.safetensors"), task_file, HOW)

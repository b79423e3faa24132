"""Makes the vectors of this folder: what mergekit itself makes of its files here.

    python tests/goldens/mergekit/make.py PATH/TO/mergekit-pytorch

mergekit's requirements don't go together with this package's, so it lives in an environment of its
own; `uv venv` and `uv pip install mergekit==0.1.5` make one. The models are the tensors beside this
folder. mergekit is asked for each `*.yaml`, and its output becomes `*.safetensors`.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent

for file in sorted(HERE.glob("*.yaml")):
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "out"
        command = [sys.argv[1], str(file.resolve()), str(target)]
        subprocess.run(command, check=True, cwd=HERE.parent)
        (made,) = target.glob("*.safetensors")
        shutil.copyfile(made, file.with_suffix(".safetensors"))

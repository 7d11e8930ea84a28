"""The Slurm script of docs/cluster.md, run by a stand-in for `sbatch`: each array task is in
namespaces of its own, with its own processes and host name and without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs/cluster.md").read_text()
SBATCH = """#!/bin/bash
# runs a job at once, its array tasks side by side, and prints its number once all have ended well
tasks=none
while [[ $1 == --* ]]; do
  case $1 in --array=*) tasks=$(seq "${1#--array=0-}" -1 0) ;; esac
  shift
done
echo . >>jobs
export SLURM_JOB_ID=$(wc -l <jobs) SLURM_CPUS_PER_TASK=1
for task in $tasks; do
  [[ $task == none ]] || export SLURM_ARRAY_TASK_ID=$task
  unshare --user --map-root-user --net --uts --mount --pid --fork --mount-proc bash -c \\
    'hostname "node$0"; exec bash "$@"' "$task" "$@" >&2 &
  pids+=" $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
echo "$SLURM_JOB_ID"
"""
SRUN = '#!/bin/bash\nexec "$@"\n'
BIOMASS = f'#!/bin/bash\nexec {sys.executable} -m cli "$@"\n'
SWEEP = """
experiment: {name: small, seed: 3}
head: {kind: [cls_gating, density], gate_hidden: 6, shared_hidden: 8}
trainer: {num_epochs: 3, batch_size: 4}
optimization: {lr: 1e-2, weight_decay: 0.01}
inference: {tta_indices: [0]}
cv: {n_folds: 2, groups: date}
"""
BUILD = f"--views 1 {' '.join(TINY)}"
SMALL = {
    "--parts 512": f"--parts 3 {BUILD}",
    "0-511": "0-2",
    "--passes 8": "--passes 2 --device cpu",
    "0-7": "0-1",
    '--part "$N/16"': '--tta 1 --device cpu --part "$N/2"',
    "0-15": "0-1",
}
WHOLE = f"""
biomass store build --data data --out whole.zarr {BUILD}
biomass train --config sweep.yaml --store whole.zarr --passes 2 --device cpu --out whole
biomass predict --sweep whole/* --data data --tta 1 --device cpu --out whole.csv
"""


def can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.system
@pytest.mark.skipif(not can_unshare(), reason="namespaces cannot be made here (unshare)")
def test_the_slurm_script_ends_with_the_bytes_of_one_process(tmp_path, pasture):
    script, submit = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    for given, small in SMALL.items():
        assert given in script + submit
        script = script.replace(given, small)
        submit = submit.replace(given, small)
    (tmp_path / "biomass.sh").write_text(script)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "data").symlink_to(pasture)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "biomass": BIOMASS}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for commands in (submit, WHOLE):
        run = ["bash", "-e", "-c", commands]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    for name, whole in (
        ("submission.csv", "whole.csv"),
        ("predictions.csv", "whole.predictions.csv"),
    ):
        assert (tmp_path / name).read_bytes() == (tmp_path / whole).read_bytes()

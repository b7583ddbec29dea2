"""Every command of README.md, as it is typed there, on tiny data."""

import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.launching import ROOT, call
from support.shards import encoded, write_ours

from dcgan_dist.config import Config
from dcgan_dist.config.groups import ModelConfig
from dcgan_dist.gan.state import create_state
from dcgan_dist.run import checkpoint

PAGE = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(
    r"(dcgan-dist \w+ |launch/\w+\.sh|accelerate launch -|torchrun -|sbatch |pip |wandb \w+|[A-Z_]+=\S+ \S)"
)

TINY = (
    "--images 8 --batch_size 8 --model.nz 4 --model.ngf 4 --model.ndf 4 --precision fp32 --data.faces 64 "
    "--data.workers 1 --log.every 8 --log.samples 4 --trackers=wandb --wandb.mode disabled --run_dir tiny"
)
RUN = {  # what stands for `...`, or follows; what the command must leave
    "launch/quickstart.sh": (TINY, "tiny/DONE"),
    "dcgan-dist shard FOLDER shards --size 96 --store auto": ("", "shards/manifest.json"),
    "dcgan-dist inspect shards": ("", "contact.png"),
    "dcgan-dist launch --data.shards 'shards/*.tar' --model.image_size 96": (TINY, "tiny/DONE"),
    "dcgan-dist sample runs/dcgan --count 256 --out pictures.png": ("", "pictures.png"),
    "dcgan-dist report runs/dcgan": ("", "runs/dcgan/report.html"),
    "dcgan-dist launch ...": (TINY, "tiny/DONE"),
    "dcgan-dist launch --cpu --num_processes 4 ...": (TINY, "tiny/DONE"),
    "accelerate launch -m dcgan_dist.train ...": (TINY, "tiny/DONE"),
    "dcgan-dist launch --wandb.mode offline ...": (
        TINY.replace("--wandb.mode disabled", "--wandb.mode offline"),
        "tiny/wandb",
    ),
    "dcgan-dist launch --trackers tensorboard ...": (TINY.replace("--trackers=wandb ", ""), "tiny/tensorboard"),
    "dcgan-dist doctor --run_dir runs/faces --data.shards 'shards/*.tar'": ("--only shards --json found", "found"),
    "dcgan-dist launch -m dcgan_dist doctor ...": ("--only disk --json found", "found"),
}
ELSEWHERE = {  # why a command does not run here; the test that runs it
    "git clone <this repository> && cd dcgan_dist": ("there is no address yet", None),
    "launch/test.sh": ("it runs this test", ".ci/run::launch/test.sh"),
    "source .venv/bin/activate": ("venv makes this file", None),
    "pip install '.[all]'": ("it needs a package index", "launch/install.sh::pip install"),
    "launch/cpu.sh 4 ...": (
        "four more processes take long",
        "tests/launch/test_launchers.py::test_two_cpu_ranks_train_from_any_folder",
    ),
    "launch/single_gpu.sh ...": (
        "it needs a GPU",
        "tests/launch/test_launchers.py::test_a_script_that_is_called_wrongly",
    ),
    "launch/multi_gpu.sh ...": ("it needs GPUs", "tests/launch/test_launchers.py::test_a_wrong_option_is_one_line"),
    "NODES=2 NODE_RANK=0 MAIN_ADDR=host0 launch/multi_node.sh ...": (
        "it needs two machines",
        "tests/launch/test_launchers.py::test_two_machines_by_hand",
    ),
    "sbatch --nodes=2 slurm/train.sh ...": (
        "it needs SLURM",
        "tests/slurm/test_train_sh.py::test_two_nodes_of_two_ranks",
    ),
    "wandb login": (
        "it needs an account",
        "tests/run/test_wandb_settings.py::test_the_files_of_wandb_init_and_login_count",
    ),
    "dcgan-dist watch runs/NAME": (
        "there is no run of that name",
        "tests/commands/test_watch.py::test_progress_curves_and_the_last_lines_of_the_log",
    ),
    "dcgan-dist dashboard --project dcgan_dist": (
        "it needs an account",
        "tests/commands/test_dashboard_command.py::test_what_is_sent_is_what_the_golden_file_holds",
    ),
    "dcgan-dist wandb sync runs/NAME": (
        "it needs a server",
        "tests/run/test_wandb_sync.py::test_killed_at_ten_random_moments_nothing_is_lost_or_double",
    ),
    "torchrun --nproc-per-node 8 -m dcgan_dist doctor ...": (
        "eight processes take long",
        "tests/parallel/test_doctor_ranks.py::test_launched_ranks_are_those_that_are_examined",
    ),
}


def commands() -> list[str]:
    """Those in blocks of bash, and those between backquotes in the text, each once."""
    blocks = [line for kind, block in FENCED.findall(PAGE) if kind == "bash" for line in block.splitlines()]
    typed = [re.sub(r"\s+#.*", "", line) for line in blocks]
    inline = [text for text in INLINE.findall(FENCED.sub("", PAGE)) if COMMAND.match(text)]
    return list(dict.fromkeys([*typed, *inline]))


def test_the_page_has_these_commands_and_no_others():
    assert sorted(commands()) == sorted([*RUN, *ELSEWHERE])


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_not_run_here_is_run_elsewhere(command):
    test = ELSEWHERE[command][1]
    if test is not None:
        file, _, text = test.partition("::")
        assert text in (ROOT / file).read_text()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the commands expect there: the scripts, an environment, images, shards, and a run."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "dcgan-dist"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{Path(sys.executable).with_name(name)}" "$@"\n')
        (programs / name).chmod(0o755)
    installed = call("bash", "-c", "cksum <pyproject.toml", cwd=tmp_path).stdout
    (tmp_path / ".venv" / "installed-all").write_text(installed)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "shards").mkdir()
    for number in range(12):
        (tmp_path / "FOLDER" / f"{number}.png").write_bytes(encoded(number, "png"))
    write_ours(tmp_path / "shards" / "000000.tar", 12)
    model = ModelConfig(image_size=32, nz=4, ngf=4, ndf=4)
    config = Config(model=model)
    state = create_state(config, torch.device("cpu"), torch.float32, scaled=False)
    described = {f"model.{name}": value for name, value in asdict(model).items()}
    folder = tmp_path / "runs/dcgan/checkpoints"
    checkpoint.save(folder, 64, state.tensors(), {"images": 64, "config": described}, keep=2)
    return tmp_path


@pytest.mark.dist
@pytest.mark.parametrize("command", RUN)
def test_a_command_works_as_it_is_typed(command, clone):
    options, result = RUN[command]
    typed = command.replace("...", options) if "..." in command else f"{command} {options}"
    if command.startswith("dcgan-dist shard "):
        shutil.rmtree(clone / "shards")
    done = call("bash", "-c", typed, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert (clone / result).exists()

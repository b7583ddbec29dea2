#!/usr/bin/env bash
# What a machine with one GPU shows in ten minutes, without a network: the doctor's table, the GPU tests, the speed table, what
# a checkpoint costs, faces being learnt.
#
#   benchmarks/gpu.sh             needs torch >= 2.11 and the packages of pyproject.toml, but no installation of this project
#   benchmarks/gpu.sh --smoke     the same on a CPU, in a minute, with tiny sizes: tests this script
#
# Results in ${OUT:-benchmarks/results/gpu}: summary.json, NAME.txt of every part, step.json, saving-cuda.json, doctor.json,
# faces.png, faces.jsonl.
# Each part has its own time limit and no part stops the others. Exit code 0: all parts are well; 1: see summary.json.
# PYTHON names the interpreter, python3 if not set.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=$(realpath -m "${OUT:-benchmarks/results/gpu}")
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || exit
export XDG_CACHE_HOME=$work/cache OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1

if [[ ${1:-} == --smoke ]]; then
  export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
  tests=(-k "auto or refused or never_waits") limits=(600 600 600 600 600)
  doctor=(--only devices precision memory) saves=(--rounds 1 --batch 2)
  speed=(--sizes 32 --batches 8 --ngf 8 --ndf 8 --rounds 2 --seconds 0.1 --contenders plain fp32 bf16)
  training=(--model.image_size 32 --model.ngf 8 --model.ndf 8 --batch_size 16 --data.faces 128)
  training+=(--log.every 160 --log.samples_every 320 --images 640)
else
  tests=(-m gpu) limits=(40 115 240 40 130)
  doctor=() saves=(--rounds 7)
  speed=(--sizes 64 32 96 128 --batches 128 1024 --rounds 3 --seconds 0.5 --contenders plain plain_ieee fp32 bf16)
  training=(--model.image_size 64 --batch_size 128 --data.faces 30000)
  training+=(--log.every 25600 --log.samples_every 102400 --images 100000000)
fi

# part NAME SECONDS COMMAND...: runs it with a time limit; its output goes to the terminal and OUT/NAME.txt
declare -A code
part() {
  local name=$1 limit=$2
  shift 2
  echo "== $name, at most $limit s"
  timeout --preserve-status --kill-after=15 "$limit" "$@" 2>&1 | tee "$out/$name.txt"
  code[$name]=${PIPESTATUS[0]}
  echo "== $name: exit code ${code[$name]} after $SECONDS s in all"
}

part doctor "${limits[0]}" "$python" -m dcgan_dist doctor --run_dir "$work/run" --wandb.mode disabled --json "$out/doctor.json" --overwrite \
  ${doctor[@]+"${doctor[@]}"}
# -W default: a warning that no other machine gives is to be read, not to hide what else the test shows
part tests "${limits[1]}" "$python" -m pytest -q tests/gpu -W default -p no:cacheprovider "${tests[@]}"
part step "${limits[2]}" "$python" -m benchmarks.step "${speed[@]}" --out "$out"
part saving "${limits[3]}" "$python" -m benchmarks.saving "${saves[@]}" --out "$out"
# no number of images lasts as long on every GPU: the time limit asks the trainer to stop, which it does with a checkpoint
part faces "${limits[4]}" "$python" -m dcgan_dist.train --run_dir "$work/run" --wandb.mode disabled --trackers=wandb \
  "${training[@]}"
[[ ${code[faces]} == 75 ]] && code[faces]=0

grid=$(find "$work/run/samples" -name '*.png' 2>/dev/null | sort | tail -n 1)
if [[ $grid ]] && cp "$grid" "$out/faces.png" && cp "$work/run/metrics.jsonl" "$out/faces.jsonl"; then
  echo "== $out/faces.png: G at $((10#$(basename "$grid" .png))) images"
else
  code[faces]=1
fi
report=
bad=0
for name in doctor tests step saving faces; do
  report+="\"$name\": ${code[$name]}, "
  ((code[$name] == 0)) || bad=1
done
echo "{$report\"seconds\": $SECONDS}" | tee "$out/summary.json"
exit "$bad"

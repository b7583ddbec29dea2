#!/usr/bin/env bash
# quickstart.sh [OPTIONS]: installs what is needed and trains on the embedded cartoon faces; ends with pictures.
# OPTIONS are the training options, e.g. --images 200000. A second call continues where the first one stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/install.sh
config=launch/configs/quickstart.yaml
.venv/bin/dcgan-dist launch --num_processes 1 --config "$config" "$@"

run=$(.venv/bin/python -c 'import sys; from dcgan_dist import cli; print(cli.load(sys.argv[1:], quiet=True).run_dir)' --config "$config" "$@")
last=$(find "$run/samples" -name '*.png' | sort | tail -n 1)
cat <<END

The page:         $run/report.html   (pictures, curves, options; open it in a browser)
The pictures:     $last   (all of them: $run/samples)
The metrics:      $run/metrics.jsonl
Train longer:     launch/quickstart.sh ${*:+$* }--images 400000

For the commands below, first run: source .venv/bin/activate
Curves:           tensorboard --logdir $run/tensorboard
More faces:       dcgan-dist sample $run --count 256 --out faces.png
Your own images:  dcgan-dist shard FOLDER shards --size 64
                  dcgan-dist launch --data.shards 'shards/*.tar'
END

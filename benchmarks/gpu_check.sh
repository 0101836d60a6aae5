#!/usr/bin/env bash
# What to run first on a GPU that affsup has not seen: does it work, do CUDA and CPU agree, how fast is it.
#
#   benchmarks/gpu_check.sh [OUT] [SECTION...]     all sections if none is named
#
# Sections: setup tests minibatch detectors sweeps several speeds. The first must have run before the others. `several` needs
# more than one GPU; the others use one, DEVICE. A log of each step is written to OUT; the summary at the end says which steps
# failed. A step that reaches its time limit is stopped and has failed. The speeds are also in benchmarks/results/gpu-*.
# Needs nothing but Python with affsup's packages, pytest, pytest-xdist, pytest-timeout and hypothesis (PYTHON names another
# one); generated data stands for data sets that would have to be downloaded.
set -um # with job control each step has a process group of its own, which ends with it
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:-gpu_check}")
shift || true
SECTIONS="${*:-setup tests minibatch detectors sweeps several speeds}"
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda:0}
IMAGES=${IMAGES:-cifar10} # the data set of the mini-batch runs
EPOCHS=${EPOCHS:-60} # of the run that is stopped and resumed
export AFFSUP_DATA="${AFFSUP_DATA:-$OUT/scratch/data}" AFFSUP_RUNS="$OUT/scratch/runs" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" COLUMNS=160
mkdir -p "$OUT" "$OUT/scratch"
: > "$OUT/summary.txt"

affsup() { "$PYTHON" -m affsup_cli "$@"; }

# step NAME SECONDS COMMAND...: run it with a time limit, keep its output, note how it ended.
step() {
  local name=$1 limit=$2 begun=$SECONDS status
  shift 2
  ( "$@" ) > "$OUT/$name.log" 2>&1 &
  local pid=$!
  ( sleep "$limit"; kill -KILL -- "-$pid" ) 2>/dev/null &
  local watch=$!
  wait "$pid"; status=$?
  kill -KILL -- "-$watch" "-$pid" 2>/dev/null
  printf '%-28s %s %4d s\n' "$name" "$([ "$status" = 0 ] && echo ok || echo "FAILED ($status)")" $((SECONDS - begun)) \
    >> "$OUT/summary.txt"
}

# stopped_after_an_epoch RUN ARGUMENTS...: affsup with these arguments, sent SIGTERM in its second epoch; expects the exit
# status 1 of a run that saved and stopped.
stopped_after_an_epoch() {
  local metrics="$AFFSUP_RUNS/$1/metrics.jsonl" status
  shift
  "$PYTHON" -m affsup_cli "$@" &
  local pid=$!
  until [ -s "$metrics" ] || ! kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
  kill -TERM "$pid" 2>/dev/null
  wait "$pid"; status=$?
  echo "stopped with status $status"
  [ "$status" = 1 ]
}

# agree RUN TOLERANCE: evaluations on CUDA and on the CPU differ by at most the tolerance.
agree() {
  for device in "$DEVICE" cpu; do
    affsup evaluate "$1" --device "$device" > "$OUT/evaluate-$1-$device.txt" || return 1
  done
  "$PYTHON" - "$OUT/evaluate-$1-$DEVICE.txt" "$OUT/evaluate-$1-cpu.txt" "$2" <<'PYTHON_END'
import re
import sys


def numbers(path):
    """The numbers after each line's name; percent as shares."""
    values = {}
    for line in open(path):
        name, _, rest = line.strip().partition("  ")
        for place, (number, percent) in enumerate(re.findall(r"(?<![\w.])(-?\d+\.\d+)(%?)", rest)):
            values[name, place] = float(number) / (100 if percent else 1)
    return values


first, second = map(numbers, sys.argv[1:3])
assert first and first.keys() == second.keys(), (first, second)
differences = sorted(((abs(first[name] - second[name]), name) for name in first), reverse=True)
print("largest differences:", differences[:4])
assert differences[0][0] <= float(sys.argv[3])
PYTHON_END
}

setup() {
  affsup doctor || return 1
  affsup prepare digits && affsup prepare shapes --limit 200 && affsup prepare shape-scenes --limit 120 || return 1
  "$PYTHON" - <<'PYTHON_END'
import os
from pathlib import Path

from affsup_cli.bench import synthetic

for name in ("cifar10", "voc07"):
    if not (Path(os.environ["AFFSUP_DATA"]) / name).exists():
        synthetic.make(name, Path(os.environ["AFFSUP_DATA"]), test_of_gpu=True)
PYTHON_END
}

tests() {
  "$PYTHON" -m pytest -v -n 8 -m gpu -p no:cacheprovider -p no:benchmark $(grep -rlE 'mark\.gpu|device: torch\.device|device\b.*fixture' tests --include='test_*.py')
}

minibatch() {
  local run="minibatch --dataset $IMAGES --device $DEVICE"
  step minibatch-stop 60 stopped_after_an_epoch stopped train $run --epochs "$EPOCHS" --name stopped
  step minibatch-resume 90 affsup train $run --epochs "$EPOCHS" --name stopped --resume
  step minibatch-agree 90 agree stopped 0.001
  step minibatch-bf16-compile 120 affsup train $run --epochs 4 --name compiled --set train.precision=bf16 --set train.compile=true
  step minibatch-tiles 90 affsup train $run --epochs 4 --name tiles --set train.batch_size=2048
  step minibatch-logits-row 60 affsup train $run --epochs 2 --name row --softmax row --set affinity.features=logits
}

SMALL="--set model.arch=resnet18 --set model.weights=none --set data.short_side=160 --set data.long_side=224"
detectors() {
  local small="--dataset shapes --device $DEVICE $SMALL --set train.precision=bf16"
  step relnet-stop 60 stopped_after_an_epoch relnet train relnet $small --epochs 8 --name relnet
  step relnet-resume 120 affsup train relnet $small --epochs 8 --name relnet --resume
  step relnet-agree 120 agree relnet 0.02
  step relpn 90 affsup train relpn $small --epochs 2 --name relpn
  step frcnn-compile 150 affsup train frcnn $small --epochs 1 --name frcnn --set train.compile=true
  step scene 120 affsup sweep table2-shapes --seeds 1 --device "$DEVICE" --set train.epochs=2
  step predict 60 affsup predict relnet reports/demo-attention.png --device "$DEVICE" --out "$OUT/scratch/predictions"
}

sweeps() {
  local what="sweep small-strong --seeds 4 --device $DEVICE"
  for jobs in 1 4 8; do
    AFFSUP_RUNS="$OUT/scratch/runs-$jobs" step "sweep-jobs-$jobs" 150 affsup $what --jobs "$jobs"
  done
}

several() {
  local count
  count=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
  [ "$count" -gt 1 ] || { echo "several: skipped, GPUs: $count" >> "$OUT/summary.txt"; return; }
  local last="minibatch --dataset $IMAGES --device cuda:$((count - 1)) --epochs 2"
  step several-last-gpu 60 affsup train $last --name last-gpu
  step several-last-gpu-eager 60 affsup train $last --name last-gpu-eager --set run.graph=off
  local run="minibatch --dataset $IMAGES --gpus $count"
  step several-stop 90 stopped_after_an_epoch several train $run --epochs "$EPOCHS" --name several
  step several-resume 120 affsup train $run --epochs "$EPOCHS" --name several --resume
  step several-relnet 120 affsup train relnet --dataset shapes $SMALL --gpus 2 --epochs 2 --name several-relnet
}

speeds() {
  local data="--data $AFFSUP_DATA --device $DEVICE"
  step speed-minibatch 120 "$PYTHON" benchmarks/minibatch_training.py $data --rounds 3 --steps 60 --variants float32 'float32 without graph' bf16
  step speed-affinity 90 "$PYTHON" benchmarks/affinity_cost.py $data --rounds 12
  step speed-detectors 120 "$PYTHON" benchmarks/detection_training.py $data --arch resnet101 --rounds 5 --variants frcnn relnet
  step speed-shared 120 "$PYTHON" benchmarks/shared_gpu.py $data
  step speed-graphs 120 "$PYTHON" benchmarks/large_graphs.py --device "$DEVICE" --sizes 8192 --rounds 1
}

for section in $SECTIONS; do
  case $section in
    setup | tests) step "$section" 240 "$section" ;;
    *) "$section" ;;
  esac
done
cat "$OUT/summary.txt"
! grep -q FAILED "$OUT/summary.txt"

#!/usr/bin/env bash
# Checks and measures Cloze on a machine with a GPU, and builds nothing there: gpu_build.sh has filled DIR.
#
# Usage: benches/gpu.sh DIR [check|measure|all]
#
# First one training step of each kind, which shows within seconds whether anything works at all, and the tests: every
# operation, every model and the training runs against the reference on the GPU; a test that was skipped counts as failed.
# Then training steps, Cloze and its PyTorch peer in turns, and one table of both, also when a test has failed.
#
#   RESULTS=DIR/results          where what was printed is kept
#   PYTHON=python3               one that has torch and transformers; without them Cloze is measured alone
#   SIZES="32x128 256x128 64x512"    examples x tokens of a batch
#   DTYPES="f32 tf32 bf16"       and f16
#   TIMES=2  STEPS=50            runs of each side, and timed steps in a run
#   OPTIONS=""                   for both sides, for instance --checkpointing
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$(cd "$1" && pwd)
what=${2:-all}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
results=${RESULTS:-$dir/results}
mkdir -p "$results"

# The libraries of CUDA come with PyTorch, if the system has none.
libraries=$("$python" -c '
import glob, site
print(":".join(sorted(d for s in site.getsitepackages() for d in glob.glob(f"{s}/nvidia/*/lib"))))' 2>/dev/null || true)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
export CLOZE_FIXTURES=$root/tests/fixtures/models CLOZE_TRAINING_FIXTURES=$root/tests/fixtures/training

if missing=$(ldd "$dir/train_step" | grep 'not found'); then
    echo "libraries of CUDA that are not in LD_LIBRARY_PATH, nor beside $python's PyTorch:" >&2
    echo "$missing" >&2
    exit 1
fi
echo "built from $(paste -sd' ' "$dir/BUILT_FROM")"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi finds no GPU"

check() {
    local failed=0 test log dtype
    for dtype in ${DTYPES:-f32 tf32 bf16}; do
        "$dir/train_step" --device cuda --dtype "$dtype" --batch 32 --seq 128 --steps 10 || failed=1
    done
    for test in cuda_ops cuda_tf32 cuda_training cuda_memory; do
        [ -x "$dir/$test" ] || { echo "there is no $test in $dir: run benches/gpu_build.sh $dir" >&2; return 1; }
        log=$results/$test.log
        echo "== $test"
        if ! "$dir/$test" --nocapture >"$log" 2>&1; then
            tail -40 "$log"
            failed=1
        elif grep -q '^skipped: ' "$log"; then
            grep '^skipped: ' "$log" | sort -u
            echo "what was skipped was not checked"
            failed=1
        else
            grep -E '\|Δloss\||^test result' "$log"
        fi
    done
    return $failed
}

measure() {
    local lines=$results/train_step.jsonl with_peer=1 size dtype shape
    : >"$lines"
    "$python" -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null || {
        with_peer=0
        echo "$python has no torch that finds the GPU, or no transformers: Cloze is measured alone"
    }
    for size in ${SIZES:-32x128 256x128 64x512}; do
        for dtype in ${DTYPES:-f32 tf32 bf16}; do
            shape=(--device cuda --dtype "$dtype" --batch "${size%x*}" --seq "${size#*x}" --steps "${STEPS:-50}")
            # One that fails, for instance because the memory is full, must not take the others with it.
            for _ in $(seq "${TIMES:-2}"); do
                # shellcheck disable=SC2086
                "$dir/train_step" "${shape[@]}" ${OPTIONS:-} | tee -a "$lines" || echo "cloze failed: $size $dtype"
                [ $with_peer = 0 ] && continue
                # shellcheck disable=SC2086
                "$python" "$root/benches/peer_train_step.py" --compile "${shape[@]}" ${OPTIONS:-} 2>>"$results/peer.log" |
                    tee -a "$lines" || echo "the peer failed: $size $dtype; see $results/peer.log"
            done
        done
    done
    echo
    "$python" "$root/benches/gpu_table.py" "$lines" | tee "$results/table.md"
}

case $what in
    check) check ;;
    measure) measure ;;
    all)
        failed=0
        check || failed=1
        measure
        exit $failed
        ;;
    *) echo "$what is none of check, measure and all" >&2; exit 2 ;;
esac

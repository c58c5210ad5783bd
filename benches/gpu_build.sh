#!/usr/bin/env bash
# Builds what gpu.sh runs on a machine with a GPU: the CUDA tests and the benchmark of a training step. The machine that builds
# needs Rust and the CUDA toolkit (nvcc on the path), but no GPU and no driver; CUDA_COMPUTE_CAP says for which GPU: 90 (the
# default) for an H100 or H200, 80 for an A100, 89 for an RTX 4090.
#
# Usage: benches/gpu_build.sh DIR
#
# DIR.tar.xz is the same in one file, a third as large, for the way to the other machine.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
command -v nvcc >/dev/null || { echo "nvcc is not on the path: install the CUDA toolkit" >&2; exit 1; }

# Builds without running, and copies the program of the target $1 to the folder.
keep() {
    local name=$1
    shift
    cargo "$@" --features cuda --locked --no-run --message-format=json | python3 -c '
import json, shutil, sys
name, to = sys.argv[1:]
messages = [json.loads(line) for line in sys.stdin if line.startswith("{")]
programs = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name]
shutil.copy(programs[-1], f"{to}/{name}")
' "$name" "$dir"
    strip "$dir/$name"
    echo "built $name"
}

for name in cuda_ops cuda_tf32 cuda_training cuda_memory; do
    keep "$name" test --release -p cloze --test "$name"
done
keep train_step bench -p cloze --bench train_step
{ git rev-parse HEAD 2>/dev/null || echo unknown; echo "compute capability $CUDA_COMPUTE_CAP"; } >"$dir/BUILT_FROM"
tar -C "$dir/.." -c --exclude results "$(basename "$dir")" | xz -T0 >"$dir.tar.xz"
ls -l "$dir" "$dir.tar.xz"

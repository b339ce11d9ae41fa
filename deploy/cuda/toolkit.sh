#!/usr/bin/env bash
# Brings what kvferry's feature `cuda` needs from NVIDIA, out of NVIDIA's own packages on PyPI: no root, no GPU, no CUDA installation.
#
#   deploy/cuda/toolkit.sh DEST                 CUDA 13.0's compiler and headers, to build: 105 MB to download, 270 MB on disk
#   deploy/cuda/toolkit.sh --libraries DEST     cuBLASLt, to run where no CUDA 13 is installed: 420 MB to download, 540 MB on disk
#
# Then `export CUDA_HOME=DEST` for cargo, or `export LD_LIBRARY_PATH=DEST` for a node. A DEST that is complete is left as it is.
# Versions and digests are in compiler.txt and libraries.txt; pip refuses anything else. Needs python3 with pip, on x86-64 Linux.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { echo "toolkit.sh: $*" >&2; exit 1; }

what=compiler
if [ "${1:-}" = --libraries ]; then what=libraries; shift; fi
[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: toolkit.sh [--libraries] DEST"
readonly what dest=$1 pins=$here/$what.txt

# Versions that run: a folder that was touched since does not count as complete.
works() {
    case $what in
        compiler) "$1/bin/nvcc" --version 2>/dev/null | grep -q 'release 13\.0' && [ -f "$1/include/cuda_bf16.h" ] && [ -x "$1/nvvm/bin/cicc" ] ;;
        libraries) [ -s "$1/libcublasLt.so.13" ] ;;
    esac
}

if cmp -s "$pins" "$dest/pins.txt" && works "$dest"; then
    echo "toolkit.sh: $dest is complete"
    exit 0
fi
if [ -e "$dest" ] && [ ! -e "$dest/pins.txt" ] && [ -n "$(ls -A "$dest")" ]; then
    fail "$dest holds something else; give a folder that is empty or does not exist"
fi
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the packages are for x86-64 Linux; on $(uname -sm) install CUDA 13.0 and set CUDA_HOME"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed (Debian: python3-pip)"

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$(dirname "$dest")/.toolkit.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The platform is named, so that it does not matter which one pip would choose for this machine's python.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --python-version 3.11 \
    --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
    --dest "$work/wheels" --requirement "$pins" ||
    fail "the packages of $pins could not be downloaded; pip's own message is above (a mirror can be named with PIP_INDEX_URL)"
for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
done

case $what in
    compiler)
        mv "$work/unpacked/nvidia/cu13" "$work/ready"
        find "$work/ready/bin" "$work/ready/nvvm/bin" -type f -exec chmod 755 {} +
        ;;
    libraries)
        # cuBLASLt needs nothing but the C library and the driver: neither cuBLAS nor the CUDA runtime.
        mkdir "$work/ready"
        mv "$work/unpacked/nvidia/cu13/lib/libcublasLt.so.13" "$work/ready"
        cp "$work"/unpacked/nvidia_cublas-*.dist-info/licenses/License.txt "$work/ready"
        ;;
esac
works "$work/ready" || fail "what the packages hold does not work on this machine: $("$work/ready/bin/nvcc" --version 2>&1 | tail -n 2)"
cp "$pins" "$work/ready/pins.txt"
chmod 755 "$work/ready"
rm -rf "$dest"
mv "$work/ready" "$dest"
if [ "$what" = compiler ] && ! command -v g++ >/dev/null; then
    echo "toolkit.sh: nvcc needs a C++ compiler besides, and there is none (Debian: g++)" >&2
fi
echo "toolkit.sh: $what of CUDA 13.0 in $dest ($(du -sh "$dest" | cut -f1))"

#!/usr/bin/env bash
# Makes local stand-ins for the base images that the Dockerfile names, where they can be neither found nor pulled: the
# same names, Debian's own packages, this machine's Rust toolchain. So the very same Dockerfile is tested everywhere.
# An image that is there, or that a registry gives, is left as it is.
#
#   tests/compose/base-images.sh            needs root for debootstrap
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly PULL_SECONDS=120
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { echo "base-images: $*"; }

fail() { say "$*" >&2; exit 1; }

# base NAME: the image that the Dockerfile gives to the build argument NAME
base() { sed -n "s/^ARG $1=//p" Dockerfile; }

have() { docker image inspect "$1" >/dev/null 2>&1; }

there() { # there IMAGE: is on this engine, or can be brought here
    if have "$1"; then say "$1 is here"; return 0; fi
    if timeout "$PULL_SECONDS" docker pull --quiet "$1" >/dev/null 2>&1; then say "$1 was pulled"; return 0; fi
    say "$1 cannot be pulled, making a local one"
    return 1
}

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null && return 0
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# What Debian's slim images leave out: documentation, translations, what apt has downloaded.
slim() { # slim ROOT
    find "$1/usr/share/doc" -mindepth 1 -not -name copyright -not -type d -delete
    rm -rf "$1"/usr/share/{man,info,locale,lintian}/* "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*.log
}

debian_slim() { # debian_slim IMAGE, for a name such as debian:bookworm-slim
    local suite=${1#debian:} root=$work/debian
    suite=${suite%-slim}
    [ "$(id -u)" -eq 0 ] || fail "debootstrap needs root; run this script as root, or pull $1"
    need debootstrap debootstrap
    debootstrap --variant=minbase "$suite" "$root" >"$work/debootstrap.log" 2>&1 ||
        { tail -n 5 "$work/debootstrap.log" >&2; fail "debootstrap could not make $suite"; }
    slim "$root"
    tar -C "$root" --numeric-owner -c . | docker import --change 'CMD ["bash"]' - "$1" >/dev/null
    rm -rf "$root"
}

# The toolchain without its manuals and its own sources.
toolchain() { # toolchain TARGET_DIR VERSION
    local sysroot have_version
    sysroot=$(rustc --print sysroot) || fail "no Rust toolchain on this machine to make the image from"
    have_version=$(rustc --version | cut -d' ' -f2)
    case $have_version in
        "$2" | "$2".*) ;;
        *) fail "the image is of Rust $2 but rustc here is $have_version" ;;
    esac
    mkdir -p "$1"
    tar -C "$sysroot" --exclude=./share --exclude=./lib/rustlib/src --exclude=./libexec -c . | tar -C "$1" -x
}

# How this machine reaches its registries goes into the local image, never into the repository: extra authorities,
# cargo's configuration, and what the environment says of proxies and of cargo.
reach() { # reach CONTEXT_DIR
    mkdir -p "$1/authorities" "$1/cargo"
    find /usr/local/share/ca-certificates -name '*.crt' -exec cp -t "$1/authorities" {} + 2>/dev/null || true
    cp "${CARGO_HOME:-$HOME/.cargo}"/config* "$1/cargo" 2>/dev/null || true
    env | grep -iE '^(https?_proxy|no_proxy|CARGO_(REGISTR|HTTP|NET|SOURCE)[A-Z_]*)=' |
        sed 's/^\([^=]*\)=\(.*\)$/ENV \1="\2"/' || true
}

rust_slim() { # rust_slim IMAGE DEBIAN, for a name such as rust:1.95-slim-bookworm
    local version=${1#rust:} context=$work/rust
    version=${version%%-*}
    toolchain "$context/toolchain" "$version"
    {
        echo "FROM $2"
        echo 'ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo'
        echo 'ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
        reach "$context"
        echo 'COPY authorities /usr/local/share/ca-certificates'
        echo 'RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \'
        echo ' && update-ca-certificates && rm -rf /var/lib/apt/lists/*'
        echo 'COPY cargo /usr/local/cargo'
        echo 'COPY toolchain /usr/local/rustup/toolchains/local'
        echo 'RUN mkdir -p /usr/local/cargo/bin \'
        echo ' && ln -s /usr/local/rustup/toolchains/local/bin/* /usr/local/cargo/bin/ && cargo --version && rustc --version'
    } >"$context/Dockerfile"
    docker build --quiet --tag "$1" "$context" >"$work/rust.log" 2>&1 ||
        { tail -n 20 "$work/rust.log" >&2; fail "$1 could not be made"; }
}

debian=$(base RUNTIME_IMAGE)
rust=$(base RUST_IMAGE)
[ -n "$debian" ] && [ -n "$rust" ] || fail "the Dockerfile does not name its base images"
there "$debian" || debian_slim "$debian"
there "$rust" || rust_slim "$rust" "$debian"
docker image ls --format 'base-images: {{.Repository}}:{{.Tag}} {{.Size}}' | grep -E "$debian |$rust "

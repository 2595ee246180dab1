#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the tests and sets up what they need: packages of the system (as root
# on Debian), and a Python environment per Nova release under .venv/.

set -euo pipefail
shopt -s inherit_errexit

usage() {
    cat <<'USAGE'
Usage: ./run_tests.sh [--nova RELEASE]... [--python PYTHON] [SUITE]...

Suites, in the order in which they run; all of them if none is named:
  style        ruff, hacking, shellcheck, bashate
  unit         tests/unit
  tools        tests/tools: the command that builds the patched QEMU
  devstack     tests/devstack: the DevStack plugin, with a stand-in for DevStack
  functional   tests/functional; with Nova 33 and 32, whose fixtures know no
               other, with the concurrency backend eventlet
  nova-driver  Nova's own tests of its libvirt driver, against FastMigDriver
  loading      fresh environments in which nova-compute loads the driver
  qemu         tests/qemu: builds the patched QEMU and drives pairs of it
               directly (root only)
  lab          tests/lab: two real hosts (root only)

Options:
  --nova RELEASE   34, 33 or 32. Without it unit and functional run with the
                   newest and the oldest, loading with all three, and the others
                   with the newest; functional tests that are not about Nova
                   itself run with the newest only, and with its default backend.
                   With it all of them run, and under both backends.
  --python PYTHON  the interpreter to test with (default: python3)
  --list           list the suites
  --help
USAGE
}

readonly SUITES=(style unit tools devstack functional nova-driver loading qemu lab)
# Exact versions, so that a run can be repeated; tests/constraints.txt pins
# everything else.
declare -rA NOVA_VERSIONS=([34]=34.0.0 [33]=33.0.2 [32]=32.2.1)

cd "$(dirname "$(readlink -f "$0")")"
readonly ENVIRONMENTS=$PWD/.venv

die() {
    echo "run_tests.sh: $*" >&2
    exit 2
}

python=python3
releases=()
suites=()
while (($#)); do
    case $1 in
        --nova)
            [[ -n ${NOVA_VERSIONS[${2-}]-} ]] ||
                die "--nova ${2-}: not supported; one of 34, 33, 32"
            releases+=("$2")
            shift
            ;;
        --python)
            [[ -n ${2-} ]] || die '--python needs an interpreter'
            python=$2
            shift
            ;;
        --list)
            printf '%s\n' "${SUITES[@]}"
            exit
            ;;
        -h | --help)
            usage
            exit
            ;;
        *)
            [[ " ${SUITES[*]} " == *" $1 "* ]] ||
                die "no suite or option '$1'; suites: ${SUITES[*]}"
            suites+=("$1")
            ;;
    esac
    shift
done

# Someone who names a suite that needs root wants an error rather than a skip.
named=" ${suites[*]-} "
((${#suites[@]})) || suites=("${SUITES[@]}")
main_release=${releases[0]-34}
named_releases=${releases[*]-}
((${#releases[@]})) || releases=(34 32)

wanted() {
    [[ " ${suites[*]} " == *" $1 "* ]]
}

# ---------------------------------------------------------------- steps ----

passed=0
failed=0
skipped=0
summary=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Runs a command and adds its tests to the totals. A command that does not
# print stestr's totals counts as one test.
step() {
    local title=$1 started=$SECONDS status=0 ran=0 bad=0 kind number
    shift
    printf '\n== %s\n' "$title"
    timeout --verbose --kill-after=30 "${LIMIT:-$STEP_TIMEOUT}" "$@" \
        < /dev/null 2>&1 |
        tee "$log" || status=$?
    while read -r kind number; do
        ran=1
        case $kind in
            Passed) ((passed += number)) || true ;;
            Skipped | Expected) ((skipped += number)) || true ;;
            Failed | Unexpected)
                ((failed += number, bad += number)) || true
                ;;
        esac
    done < <(sed -nE \
        's/^ - (Passed|Skipped|Expected|Failed|Unexpected)[^:]*: /\1 /p' \
        "$log")
    if ((status == 0 && ran == 0)); then
        ((passed += 1))
    elif ((status != 0 && bad == 0)); then
        ((failed += 1))
    fi
    summary+=("$(printf '%s: %s, %d s' "$title" \
        "$( ((status == 0)) && echo ok || echo FAILED)" $((SECONDS - started)))")
    printf -- '-- %s\n' "${summary[-1]}"
}

# ---------------------------------------------------------- environments ----

install_packages() {
    if ((EUID == 0)) && command -v apt-get > /dev/null; then
        echo "Installing $*"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
            --no-install-recommends "$@" > /dev/null
    else
        die "missing system packages: $*; install them (bindep.txt lists all)"
    fi
}

# .venv/tools holds uv and bindep, which set up the rest.
prepare_tools() {
    local tools=$ENVIRONMENTS/tools missing
    command -v "$python" > /dev/null || install_packages python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$python" --version) is too old; Python 3.11 is the oldest"
    "$python" -c 'import ensurepip, venv' 2> /dev/null ||
        install_packages python3-venv
    if ! [[ $tools/stamp -nt tests/constraints.txt ]]; then
        "$python" -m venv --clear "$tools"
        "$tools/bin/pip" install --quiet --disable-pip-version-check \
            --constraint tests/constraints.txt bindep setuptools
        # Ten times as fast as pip, which does the same where uv is missing.
        "$tools/bin/pip" install --quiet --disable-pip-version-check \
            --constraint tests/constraints.txt uv || true
        touch "$tools/stamp"
    fi
    # uv does not read pip's configuration.
    if [[ -z ${UV_DEFAULT_INDEX-} ]]; then
        UV_DEFAULT_INDEX=${PIP_INDEX_URL:-$(
            "$tools/bin/pip" config get global.index-url 2> /dev/null || true
        )}
        [[ -z $UV_DEFAULT_INDEX ]] || export UV_DEFAULT_INDEX
    fi
    # bindep ends with 1 if something is missing and prints its name.
    if ! missing=$("$tools/bin/bindep" --brief test 2>&1); then
        # shellcheck disable=SC2086  # one package per word
        install_packages $missing
    fi
}

# Makes a virtual environment, with uv or else with pip.
make_environment() {
    local place=$1 uv=$ENVIRONMENTS/tools/bin/uv
    shift
    if [[ -x $uv ]] &&
        "$uv" venv --quiet --clear --python "$(command -v "$python")" \
            "$place" &&
        "$uv" pip install --quiet --python "$place/bin/python" "$@"; then
        return
    fi
    "$python" -m venv --clear "$place"
    "$place/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# Prints the bin directory of the environment for a Nova release; makes it
# first if the files that decide about its contents have changed.
environment() {
    local release=$1 place key
    local -a packages=(
        --constraint tests/constraints.txt
        --requirement requirements.txt
        --requirement test-requirements.txt
        --editable .
        "nova==${NOVA_VERSIONS[$release]}"
    )
    place=$ENVIRONMENTS/nova-$release
    key=$(
        {
            "$python" -VV
            echo "$place ${packages[*]}"
            cat requirements.txt test-requirements.txt tests/constraints.txt \
                setup.cfg pyproject.toml
        } | sha256sum
    )
    if [[ $(cat "$place/stamp" 2> /dev/null) != "$key" ]]; then
        echo "Setting up $place" >&2
        make_environment "$place" "${packages[@]}" >&2
        echo "$key" > "$place/stamp"
    fi
    echo "$place/bin"
}

# ---------------------------------------------------------------- suites ----

# Show a test's output only if it fails.
export OS_LOG_CAPTURE=1 OS_STDOUT_CAPTURE=1 OS_STDERR_CAPTURE=1
# Dozens of processes import the same hundreds of modules.
unset PYTHONDONTWRITEBYTECODE
# Nova's and its libraries' own, by the hundred.
export PYTHONWARNINGS=ignore::DeprecationWarning
# Seconds; a test that hangs fails. The lab's tests have limits of their own.
readonly TEST_TIMEOUT=300
# What that does not reach, such as an endless cleanup under eventlet.
readonly STEP_TIMEOUT=1500 LAB_TIMEOUT=2400
# Tests of tests/functional that may end otherwise with another release of Nova
# or another of its concurrency backends.
readonly ABOUT_NOVA='\[every_nova\]|\.test_(mailbox|qmp)\.'

# Bash files, by name or by their first line.
bash_files() {
    git ls-files --cached --others --exclude-standard |
        while read -r file; do
            [[ -f $file ]] || continue
            if [[ $file == *.sh ]] ||
                head -n 1 "$file" | grep -qaE '^#!.*\b(ba)?sh\b'; then
                echo "$file"
            fi
        done
}

run_style() {
    local bin
    bin=$(environment "$main_release")
    local -a scripts
    mapfile -t scripts < <(bash_files)
    step 'style: ruff' "$bin/ruff" check .
    # What ruff has no rules for: OpenStack's hacking checks.
    step 'style: hacking' "$bin/flake8" nova_fastmig tests lab tempest-plugin
    step 'style: shellcheck' "$bin/shellcheck" --external-sources \
        --severity=warning "${scripts[@]}"
    # As DevStack checks its own files; the others follow another style.
    step 'style: bashate' "$bin/bashate" -i E006 -e E005,E042 \
        devstack/plugin.sh devstack/settings devstack/lib/nova-fastmig \
        devstack/lib/qemu
}

run_unit() {
    local bin data pure
    local -a coverage
    bin=$(environment "$1")
    if [[ $1 != "$main_release" ]]; then
        # What imports nothing of Nova's is tested once.
        pure=$(sed -n 's|^    nova_fastmig/\(.*\)\.py$|test_\1|p' \
            tests/pure.coveragerc | sort -u | paste -sd '|')
        step "unit (Nova $1)" env OS_TEST_TIMEOUT=$TEST_TIMEOUT \
            PYTHON="$bin/python" "$bin/stestr" --test-path tests/unit run \
            --exclude-regex "^tests\.unit\.(bench\.(?!test_schedules)|lab\.|($pure)\.)"
        return
    fi
    data=$ENVIRONMENTS/coverage
    rm -rf "$data"
    mkdir "$data"
    coverage=(env "COVERAGE_FILE=$data/unit" "$bin/python" -m coverage)
    step "unit (Nova $1)" env OS_TEST_TIMEOUT=$TEST_TIMEOUT \
        COVERAGE_FILE="$data/unit" \
        PYTHON="$bin/python -m coverage run --rcfile=tests/pure.coveragerc" \
        "$bin/stestr" --test-path tests/unit run
    "${coverage[@]}" combine --quiet --rcfile=tests/pure.coveragerc
    step 'unit: every branch of the pure modules' \
        "${coverage[@]}" report --rcfile=tests/pure.coveragerc
}

run_functional() {
    local bin backend
    local -a backends=(eventlet) selection=()
    bin=$(environment "$1")
    # The fixtures of older releases know eventlet only.
    (($1 < 34)) || backends=(threading eventlet)
    # Unless a release was asked for, this is not the place for all there is.
    if [[ -z $named_releases ]]; then
        backends=("${backends[0]}")
        [[ $1 == "$main_release" ]] || selection=("$ABOUT_NOVA")
    fi
    # A part of a test's time is waiting for what services do at intervals. Each
    # test is a group of its own, as a class may have all that take long.
    for backend in "${backends[@]}"; do
        # Nova's own switch, read before anything is monkey-patched.
        step "functional (Nova $1, $backend)" env \
            OS_TEST_TIMEOUT=$TEST_TIMEOUT \
            OS_NOVA_DISABLE_EVENTLET_PATCHING="$(
                [[ $backend == threading ]] && echo true || echo false
            )" \
            PYTHON="$bin/python" \
            "$bin/stestr" --test-path tests/functional --group-regex '.*' \
            run --concurrency $(($(nproc) + 1)) "${selection[@]}"
    done
}

run_nova-driver() {
    local bin
    bin=$(environment "$1")
    step "nova-driver (Nova $1)" env OS_TEST_TIMEOUT=$TEST_TIMEOUT \
        OS_NOVA_DISABLE_EVENTLET_PATCHING=true \
        "$bin/python" -m tests.nova_driver.compare
}

run_loading() {
    local bin release versions=''
    bin=$(environment "$main_release")
    for release in ${named_releases:-34 33 32}; do
        versions+=" ${NOVA_VERSIONS[$release]}"
    done
    step "loading (Nova$versions)" env PYTHON="$bin/python" \
        LOADING_NOVA_VERSIONS="$versions" \
        "$bin/stestr" --test-path tests/loading run \
        --concurrency $((2 * $(nproc)))
}

run_tools() {
    local bin
    bin=$(environment "$main_release")
    step tools env OS_TEST_TIMEOUT=$TEST_TIMEOUT PYTHON="$bin/python" \
        "$bin/stestr" --test-path tests/tools run \
        --concurrency $(($(nproc) + 1))
}

run_devstack() {
    local bin
    bin=$(environment "$main_release")
    step devstack env OS_TEST_TIMEOUT=$TEST_TIMEOUT PYTHON="$bin/python" \
        "$bin/stestr" --test-path tests/devstack run
}

# is_root SUITE: says that it is skipped, or dies if it was named
is_root() {
    ((EUID != 0)) || return 0
    [[ $named != *" $1 "* ]] || die "$1 needs root"
    printf '\n== %s: skipped, needs root\n' "$1"
    ((skipped += 1))
    return 1
}

run_qemu() {
    is_root qemu || return 0
    # Before the lab, whose hosts get it then.
    step 'qemu: build' lab/build-qemu
    # A guest has one CPU, and its tests wait as well. Classes differ much.
    step qemu lab/with-qemu python -m stestr --test-path tests/qemu \
        --group-regex '.*' run --concurrency "$(nproc)"
}

run_lab() {
    local bin
    is_root lab || return 0
    bin=$(environment "$main_release")
    step 'lab: up' lab/up
    lab/use-switch tap
    [ -z "${NOVA_FASTMIG_LONG_TESTS:-}" ] || step 'lab: Open vSwitch with DPDK' lab/use-switch --install
    # In the controller's network, so that the tests reach Nova's API and the
    # libvirtd of both hosts.
    LIMIT=$LAB_TIMEOUT step lab lab/hold nsenter --net="/run/netns/${NOVA_FASTMIG_LAB_NAME:-nfm}-controller" \
        env PYTHON="$bin/python" \
        "$bin/stestr" --test-path tests/lab run --serial
}

prepare_tools
for suite in "${SUITES[@]}"; do
    wanted "$suite" || continue
    case $suite in
        style | tools | devstack | loading | qemu | lab) "run_$suite" ;;
        nova-driver) "run_$suite" "$main_release" ;;
        *)
            for release in "${releases[@]}"; do
                "run_$suite" "$release"
            done
            ;;
    esac
done

printf '\n'
printf '%s\n' "${summary[@]}" "all: $SECONDS s"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))

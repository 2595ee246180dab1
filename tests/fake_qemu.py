#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""A QEMU that only answers questions about itself."""

from collections.abc import Collection
import json
import os
import pathlib

# Answers as QEMU does, and notes each start.
_PROGRAM = """#!/bin/sh
echo "$@" >>"$0.starts"
echo '{{"QMP": {{"version": {version}, "capabilities": ["oob"]}}}}'
while read -r line; do
    case $line in
    *query-version*) value='{version}' ;;
    *query-migrate-capabilities*) value='{capabilities}' ;;
    *quit*) exit ;;
    *) value='{{}}' ;;
    esac
    id=$(echo "$line" | sed 's/.*"id": "\\([^"]*\\)".*/\\1/')
    echo '{{"event": "NICE", "timestamp": {{"seconds": 1}}}}'
    echo "{{\\"return\\": $value, \\"id\\": \\"$id\\"}}"
done
"""


def answers(package: str, features: Collection[str]) -> dict:
    """What a QEMU 10.0.2 answers to the questions that are asked.

    :param package: what its build has put into its version string
    :param features: those of its migration capabilities that matter
    """
    return {
        'query-version': {
            'qemu': {'major': 10, 'minor': 0, 'micro': 2},
            'package': package},
        'query-migrate-capabilities': [
            {'capability': name, 'state': False}
            for name in ('xbzrle', 'x-colo', *features)]}


def install(path: pathlib.Path, package: str,
            features: Collection[str]) -> None:
    """Put one somewhere, in place of what is there."""
    said = answers(package, features)
    program = path.with_suffix('.new')
    program.write_text(_PROGRAM.format(
        version=json.dumps(said['query-version']),
        capabilities=json.dumps(said['query-migrate-capabilities'])))
    os.chmod(program, 0o755)
    program.rename(path)


def starts(path: pathlib.Path) -> list[str]:
    """The arguments of each start."""
    return path.with_suffix('.starts').read_text().splitlines()

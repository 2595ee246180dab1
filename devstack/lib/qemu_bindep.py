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

"""Print the packages of a bindep file that are not installed.

The build must be able to say what is missing before anything is installed, so
this reads the part of bindep's format that the file uses by itself:
https://docs.opendev.org/opendev/bindep/latest/readme.html
"""

import argparse
import pathlib
import platform
import re
import shutil
import subprocess
import sys

LINE = re.compile(r'(?P<name>[\w.+-]+)(?:\s+\[(?P<selectors>[^]]*)\])?\s*$')


def platform_profiles() -> set[str]:
    """Names like bindep's: dpkg or rpm, debian, debian-bookworm, rocky-9."""
    release = platform.freedesktop_os_release()
    packager = 'dpkg' if shutil.which('dpkg-query') else 'rpm'
    major = release.get('VERSION_ID', '').split('.')[0]
    names = {packager, release['ID'],
             f'{release["ID"]}-{release.get("VERSION_CODENAME") or major}'}
    if packager == 'rpm':
        # CentOS, Rocky, Alma and Red Hat have the same packages.
        names |= {'redhat', f'redhat-{major}'}
    return {f'platform:{name}' for name in names}


def selected(selectors: list[str], active: set[str]) -> bool:
    """bindep's rule: nothing that is excluded, one of each kind if named."""
    if any(selector[1:] in active for selector in selectors
           if selector.startswith('!')):
        return False
    wanted = [selector for selector in selectors if selector[0] != '!']
    for kind in (True, False):
        of_kind = [selector for selector in wanted
                   if selector.startswith('platform:') is kind]
        if of_kind and not active.intersection(of_kind):
            return False
    return True


def packages(path: pathlib.Path, active: set[str]) -> list[str]:
    names = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split('#')[0].strip()
        if not line:
            continue
        match = LINE.match(line)
        if not match:
            sys.exit(f'{path}:{number}: {line!r} is not "name [selector ...]"')
        if selected((match['selectors'] or '').split(), active):
            names.append(match['name'])
    return names


def is_installed(name: str, packager: str) -> bool:
    command = {
        'dpkg': ['dpkg-query', '--show', '--showformat',
                 '${db:Status-Status}\n', name],
        'rpm': ['rpm', '--query', '--whatprovides', name],
    }[packager]
    found = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True)
    return found.returncode == 0 and (
        packager == 'rpm' or 'installed' in found.stdout.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=pathlib.Path)
    parser.add_argument('profile', nargs='*')
    arguments = parser.parse_args()
    active = platform_profiles() | set(arguments.profile)
    packager = 'dpkg' if 'platform:dpkg' in active else 'rpm'
    for name in packages(arguments.file, active):
        if not is_installed(name, packager):
            print(name)


if __name__ == '__main__':
    main()

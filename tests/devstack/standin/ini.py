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
"""iniset and inidelete: what DevStack's functions do to a file.

    ini.py set FILE SECTION OPTION [VALUE]
    ini.py delete FILE SECTION OPTION
"""

import pathlib
import re
import sys


def main(command, name, section, option, value=''):
    file = pathlib.Path(name)
    lines = file.read_text().splitlines() if file.exists() else []
    header = f'[{section}]'
    if header not in lines:
        if command == 'delete':
            return
        lines += ['', header]
    start = lines.index(header) + 1
    end = next((number for number in range(start, len(lines))
                if lines[number].startswith('[')), len(lines))
    found = [number for number in range(start, end)
             if re.match(rf'{re.escape(option)}\s*=', lines[number])]
    if command == 'delete':
        for number in reversed(found):
            del lines[number]
    elif found:
        for number in found:
            lines[number] = f'{option} = {value}'
    else:
        lines.insert(start, f'{option} = {value}')
    file.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main(*sys.argv[1:])

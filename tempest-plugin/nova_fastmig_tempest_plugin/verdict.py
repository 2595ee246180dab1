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

"""The line in which nova-fastmig reports a migration.

Not the package's own parser: Tempest's environment has no Nova, and a test
that reads the line by itself notices when its form changes.
"""

import re

PREFIX = 'fastmig SLA '

_LINE = re.compile(
    r'fastmig SLA (?P<verdict>met|missed|unknown): '
    r'(?P<outcome>completed|aborted|failed|refused), '
    r'downtime (?P<downtime_ms>\d+|\?)/(?P<max_downtime_ms>\d+) ms, '
    r'total (?P<total_ms>\d+|\?)/(?P<max_total_ms>\d+) ms')


def parse(line):
    """Read the part that every report has.

    :returns: verdict, outcome, and the figures as numbers or None; None if
        this is no report
    """
    match = _LINE.match(line)
    if match is None:
        return None
    fields = match.groupdict()
    for name in ('downtime_ms', 'max_downtime_ms', 'total_ms',
                 'max_total_ms'):
        text = fields[name]
        fields[name] = None if text == '?' else int(text)
    return fields

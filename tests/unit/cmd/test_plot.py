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


import datetime
from unittest import mock

import ddt
from matplotlib import figure

from nova_fastmig.cmd import plot
from tests.unit.cmd import test_report


@ddt.ddt
class TestPlot(test_report.JournalTestCase):

    def plot(self, kind, *arguments) -> tuple[int, str, bytes | None]:
        path = self.state / 'out.png'
        code, _, error = self.run_command('plot', kind, str(path), *arguments)
        return code, error, path.read_bytes() if path.exists() else None

    @ddt.data('distribution', 'timeline')
    def test_a_picture(self, kind):
        self.fill()
        code, error, picture = self.plot(kind)
        self.assertEqual((0, ''), (code, error))
        self.assertTrue(picture.startswith(b'\x89PNG'))

    def test_nothing_to_plot(self):
        self.add('2026-02-03T00:00:00Z', **test_report.ABORTED)
        code, error, picture = self.plot('timeline')
        self.assertEqual((1, None), (code, picture))
        self.assertIn('no such report with a downtime', error)

    def test_matplotlib_is_an_extra(self):
        self.fill()
        with mock.patch.dict('sys.modules', {'matplotlib': None}):
            code, error, _ = self.plot('timeline')
        self.assertEqual(1, code)
        self.assertIn('pip install "nova-fastmig[plot]"', error)

    def axes(self, draw):
        axes = figure.Figure().subplots()
        draw(axes, [
            (datetime.datetime(2026, 2, day, tzinfo=datetime.UTC), downtime,
             limit, verdict)
            for day, downtime, limit, verdict in (
                (1, 7, 10, 'met'), (2, 12, 10, 'missed'),
                (3, 8, 10, 'met'), (4, 30, 50, 'met'))])
        return axes

    def test_what_a_distribution_shows(self):
        axes = self.axes(plot._distribution)
        drawn = {line.get_label(): line for line in axes.get_lines()}
        curve = drawn['limit 10 ms, 3 migrations']
        self.assertEqual([7, 8, 12], list(curve.get_xdata())[1:])
        self.assertEqual(1, curve.get_ydata()[-1])
        self.assertIn('limit 50 ms, 1 migrations', drawn)
        self.assertEqual(
            {10, 50}, {line.get_xdata()[0] for line in axes.get_lines()
                       if line.get_linestyle() == ':'})

    def test_what_a_timeline_shows(self):
        drawn = {line.get_label(): list(line.get_ydata())
                 for line in self.axes(plot._timeline).get_lines()}
        self.assertEqual({'met': [7, 8, 30], 'missed': [12],
                          'limit': [10, 10, 10, 50]}, drawn)

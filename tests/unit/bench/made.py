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

"""Results with made-up runs, for tests."""

from nova_fastmig.bench import catalog
from nova_fastmig.bench import scenario

STEPS = {'stopped_ms': 0.5, 'pages_sent_ms': 1.0, 'devices_sent_ms': 3.0,
         'pages_loaded_ms': 4.0, 'devices_loaded_ms': 7.0, 'resumed_ms': 8.0}
# what files of earlier versions have beside them
CLOCKS = {'clock_error_ms': 0.1, 'clock_offset_ms': -0.1}


def results(contenders=('nova', 'fastmig-patched', 'virsh'),
            workloads=('idle', 'l2fwd'), rounds=2, migrations=2,
            **figures) -> scenario.Results:
    """Runs whose blackouts are 10, 11, 12, ... times the contender's place.

    :param figures: fields of Figures that all runs have
    """
    comparison = catalog.comparison('made', contenders, workloads, rounds,
                                    migrations)
    places = {catalog.CONTENDERS[name]: place
              for place, name in enumerate(contenders, 1)}
    runs = []
    for turn in comparison.turns():
        for key, _ in turn.migrations:
            factor = (10 + len(runs) % 7) * places[turn.contender]
            runs.append(scenario.Run(
                key, '2026-01-01T00:00:00+00:00', 'compute1',
                scenario.Figures(**{
                    'blackout_ms': factor, 'gap_ms': factor + 1,
                    'packets_lost': factor, 'total_qemu_ms': factor * 50,
                    'total_libvirt_ms': factor * 100,
                    'downtime_libvirt_ms': factor + 2,
                    'cpu_source_ms': 900, 'bytes_sent': 2**27,
                    'steps_ms': (STEPS | CLOCKS
                                 if turn.contender.features else {}),
                    **figures})))
    return scenario.Results(
        comparison, {'cpu': 'a CPU', 'cores': 2, 'accel': 'tcg'},
        'nova-fastmig bench run', tuple(runs), {'rdma': 'no device'})

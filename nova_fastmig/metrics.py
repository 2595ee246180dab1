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

"""Prometheus metrics of the reports."""

from collections.abc import Iterable
from collections.abc import Iterator
import math
import pathlib
import threading
from wsgiref import simple_server

from oslo_config import cfg
from oslo_log import log as logging
import prometheus_client
from prometheus_client import metrics_core
from prometheus_client import parser
from prometheus_client import registry

from nova_fastmig import model

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'prometheus_textfile', default='$state_path/fastmig/fastmig.prom',
        help="""
File that the sink ``prometheus`` writes after each migration, in the format
of the node exporter's textfile collector; its name must end in ``.prom`` for
that. Point it into the directory of ``--collector.textfile.directory`` to
have it collected. The counters go on from this file when nova-compute starts
again, so it is written for ``prometheus_port`` too.
"""),
    cfg.PortOpt(
        'prometheus_port', default=0,
        help="""
TCP port on which nova-compute itself answers Prometheus at ``/metrics``. 0
opens no port. Anybody who can reach the port can read the metrics.
"""),
    cfg.HostAddressOpt(
        'prometheus_address', default='127.0.0.1',
        help="""
Address to listen on with ``prometheus_port``. Use one of the management
network to be reached from another host.
"""),
]

# Around the limits that flavors ask for, from what a patched QEMU can do to
# the highest limit by default; Prometheus counts in seconds.
BLACKOUT_BUCKETS_S = (.001, .002, .003, .005, .0075, .01, .015, .02, .03, .05,
                      .075, .1, .15, .2, .3, .5, 1, 2, 5)
TOTAL_BUCKETS_S = (.1, .2, .5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600)


def register_opts(conf: cfg.ConfigOpts) -> None:
    conf.register_opts(OPTS, group='fastmig')


def misses(report: model.SlaReport) -> list[str]:
    """Why the SLA was not kept, in words from a short fixed list.

    :returns: "downtime", "total" or both for a guest that moved; otherwise
        the outcome; empty if nothing was missed
    """
    if report.outcome is not model.Outcome.COMPLETED:
        return [str(report.outcome)]
    return [name for name, judgement in (('downtime', report.downtime),
                                         ('total', report.total))
            if judgement.verdict is model.Verdict.MISSED]


def _key(sample) -> tuple[str, frozenset]:
    return sample.name, frozenset(sample.labels.items())


class _Resumed(registry.Collector):
    """What was counted before this process began, and since.

    :param live: of this process
    :param before: families of an earlier process, in the text format's shape
    """

    def __init__(self, live: registry.Collector,
                 before: Iterable[metrics_core.Metric]):
        self._live = live
        self._before = {
            _key(sample): sample
            for family in before for sample in family.samples}

    def collect(self) -> Iterator[metrics_core.Metric]:
        for family in self._live.collect():
            samples = {
                _key(sample): sample for sample in family.samples
                # When a counter was made; it would be that of this process.
                if not sample.name.endswith('_created')}
            own_names = {f'{family.name}{suffix}' for suffix in (
                '_total', '_bucket', '_count', '_sum')}
            for key, old in self._before.items():
                if old.name in own_names:
                    new = samples.get(key, old._replace(value=0.0))
                    samples[key] = new._replace(value=new.value + old.value)
            merged = metrics_core.Metric(
                family.name, family.documentation, family.type)
            merged.samples = list(samples.values())
            yield merged


def _read(path: pathlib.Path) -> list[metrics_core.Metric]:
    """The families in a textfile; none if there is no good one.

    Counting begins anew then, which Prometheus takes for a restart.
    """
    try:
        families = list(parser.text_string_to_metric_families(
            path.read_text()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        LOG.warning('Cannot go on from the metrics in %s, counting from 0: '
                    '%s', path, error)
        return []
    if not all(0 <= sample.value < math.inf
               for family in families for sample in family.samples):
        LOG.warning('%s has what is no count, counting from 0', path)
        return []
    for family in families:
        bounds = {sample.labels['le'] for sample in family.samples
                  if 'le' in sample.labels}
        if bounds and bounds not in map(_bounds, (
                BLACKOUT_BUCKETS_S, TOTAL_BUCKETS_S)):
            LOG.warning('The metrics in %s have other buckets, counting from '
                        '0', path)
            return []
    return families


def _bounds(buckets: tuple[float, ...]) -> set[str]:
    return {*(prometheus_client.utils.floatToGoString(each)
              for each in buckets), '+Inf'}


class Metrics:
    """Counts reports and writes them to a textfile.

    :param path: of the textfile; counting goes on from what it holds
    """

    def __init__(self, path: str):
        self._path = pathlib.Path(path)
        live = prometheus_client.CollectorRegistry()
        self._blackout = prometheus_client.Histogram(
            'fastmig_blackout_seconds',
            'How long guests stood still in completed migrations.',
            ['flavor'], buckets=BLACKOUT_BUCKETS_S, registry=live)
        self._total = prometheus_client.Histogram(
            'fastmig_total_seconds',
            "How long completed migrations took, from libvirt's start.",
            ['flavor'], buckets=TOTAL_BUCKETS_S, registry=live)
        self._migrations = prometheus_client.Counter(
            'fastmig_migrations',
            'Migrations of tagged servers that left this host.',
            ['flavor', 'outcome', 'verdict'], registry=live)
        self._missed = prometheus_client.Counter(
            'fastmig_missed_slas',
            'SLAs that were not kept; one migration can miss both limits.',
            ['flavor', 'reason'], registry=live)
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(_Resumed(live, _read(self._path)))

    def add(self, report: model.SlaReport, flavor: str) -> None:
        """Count a report and write the textfile.

        :raises: OSError if the file cannot be written; it is counted then
        """
        if report.outcome is model.Outcome.COMPLETED:
            for histogram, judgement in ((self._blackout, report.downtime),
                                         (self._total, report.total)):
                if judgement.measured_ms is not None:
                    histogram.labels(flavor).observe(
                        judgement.measured_ms / 1000)
        self._migrations.labels(flavor, report.outcome, report.verdict).inc()
        for reason in misses(report):
            self._missed.labels(flavor, reason).inc()
        self.write()

    def write(self) -> None:
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        prometheus_client.write_to_textfile(str(self._path), self.registry)

    def serve(self, address: str,
              port: int) -> tuple[simple_server.WSGIServer, threading.Thread]:
        """Answer Prometheus in a thread that ends with the process.

        :returns: the server and its thread
        :raises: OSError if the port cannot be opened
        """
        return prometheus_client.start_http_server(
            port, address, self.registry)

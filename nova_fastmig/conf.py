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

"""The ``[fastmig]`` group of nova.conf."""

from oslo_config import cfg
from oslo_config import types

from nova_fastmig import exception
from nova_fastmig import model
from nova_fastmig import plan

GROUP = cfg.OptGroup(
    'fastmig',
    title='Fast migration of NFV guests',
    help="""
Live migration of servers whose flavor has the extra spec
``fastmig:enabled=true``. Needs ``compute_driver = fastmig.FastMigDriver``.

Set the defaults and bounds alike on nova-api, which checks flavors against
them, and on nova-compute, which checks every migration against them.
""")

OPTS = [
    cfg.IntOpt(
        'default_max_downtime_ms', default=10, min=1,
        help="""
Limit, in milliseconds, of the time that a guest stands still during its
migration, for flavors without ``fastmig:max_downtime_ms``.

A lower limit makes more migrations run out of time, because QEMU goes on
copying memory until what is left fits the limit. 10 suits packet forwarders.
"""),
    cfg.IntOpt(
        'default_max_total_ms', default=2000, min=1,
        help="""
Limit, in milliseconds, of a whole migration, for flavors without
``fastmig:max_total_ms``. It counts from libvirt's start of the migration;
Nova's own steps before and after are not part of it.
"""),
    cfg.StrOpt(
        'default_on_miss', default=str(model.OnMiss.ABORT),
        choices=[
            (str(model.OnMiss.ABORT),
             'the guest stays at the source and was never paused'),
            (str(model.OnMiss.PROCEED),
             'go on; the verdict will say that the limit was missed'),
            (str(model.OnMiss.POST_COPY),
             'switch over at once and fetch the rest of the memory after; '
             'needs [libvirt]live_migration_permit_post_copy')],
        help="""
What to do when the total time runs out before the switchover, for flavors
without ``fastmig:on_miss``.
"""),
    cfg.IntOpt(
        'default_parallel_connections', default=1, min=1,
        help="""
Number of connections that carry guest memory, for flavors without
``fastmig:parallel_connections``. It takes the place of
``[libvirt]live_migration_parallel_connections`` for tagged flavors.

More than one helps where a single stream cannot fill the network. Each costs
a thread on both hosts; with few free cores it makes the downtime worse.
"""),
    cfg.StrOpt(
        'default_qemu', default=str(model.QemuChoice.ANY),
        choices=[
            (str(model.QemuChoice.ANY), 'whatever the hosts have'),
            (str(model.QemuChoice.PATCHED),
             "the project's patched QEMU on both hosts")],
        help='The QEMU to insist on, for flavors without ``fastmig:qemu``.'),
    cfg.IntOpt(
        'lowest_max_downtime_ms', default=1, min=1,
        help='Lowest ``fastmig:max_downtime_ms`` that a flavor may have.'),
    cfg.IntOpt(
        'highest_max_downtime_ms', default=1000, min=1,
        help='Highest ``fastmig:max_downtime_ms`` that a flavor may have.'),
    cfg.IntOpt(
        'lowest_max_total_ms', default=100, min=1,
        help='Lowest ``fastmig:max_total_ms`` that a flavor may have.'),
    cfg.IntOpt(
        'highest_max_total_ms', default=600000, min=1,
        help='Highest ``fastmig:max_total_ms`` that a flavor may have.'),
    cfg.IntOpt(
        'highest_parallel_connections', default=16, min=1, max=255,
        help="""
Highest ``fastmig:parallel_connections`` that a flavor may have. QEMU takes at
most 255.
"""),
    cfg.StrOpt(
        'emulator',
        default='/opt/nova-fastmig/qemu/bin/qemu-system-x86_64',
        help="""
Path of the patched QEMU on this host. Servers of tagged flavors start on it,
and those that migrate to this host arrive on it. Where there is no file, or
the option is empty, they use the QEMU that libvirt takes by itself.

nova-compute must be allowed to run it, to ask what it has; libvirt's security
driver must allow QEMU at this path.
"""),
    cfg.ListOpt(
        'qemu_features', default=[str(each) for each in model.QemuFeature],
        mutable=True,
        help=f"""
Features of the patched QEMU that migrations from this host may use; an empty
list for none. A feature is used where the QEMU of the hosts that it concerns
has it. All of them: {', '.join(model.QemuFeature)}.
"""),
    cfg.ListOpt(
        'permitted_obstacles', default=[],
        item_type=types.String(choices=list(model.Obstacle)),
        help="""
What may be in a tagged guest although its SLA cannot be vouched for then. The
migration of a guest with anything else of this kind is refused before it
starts; with what is permitted it is done, and its verdict has the reason.

``passthrough``: devices of the host (PCI, mediated devices, SR-IOV and vDPA
ports). Nova unplugs SR-IOV and vDPA ports for the time of the migration, and
the state of any other device has no limit. ``block-migration``: disks that are
not on shared storage, so that they are copied with the memory.
"""),
    cfg.IntOpt(
        'switchover_timeout_ms', default=0, min=0,
        max=plan.LONGEST_SWITCHOVER_LIMIT_MS,
        help="""
For how long, in milliseconds, a guest may stand still in a switchover that
does not finish. Then the migration is cancelled and the guest resumes at the
source. 0 means twenty times ``fastmig:max_downtime_ms`` and at least 2000; a
value below ``fastmig:max_downtime_ms`` counts as that.

It is for a switchover that hangs, not for one that is late: whoever cancels
one that was about to finish makes the guest stand still once more with the
next attempt. It is noticed with the next poll (``poll_interval_ms``).
"""),
    cfg.IntOpt(
        'switchover_bandwidth_mib_s', default=0, min=0,
        help="""
Bandwidth, in MiB per second, that QEMU is told to expect for the switchover
(its ``avail-switchover-bandwidth``). It stops the guest when what remains can
be sent with it within the downtime limit; by itself it estimates the bandwidth
from what it sent last, which is too little where it has mostly found zero
pages. 0 takes what earlier migrations between the two hosts had, once that is
known, and leaves it to QEMU until then.

Used where the source has libvirt 11.1 and QEMU 8.2 or newer. A value that the
network does not keep makes guests stand still for too long.
"""),
    cfg.IntOpt(
        'port_wiring_timeout_s', default=30, min=0,
        help="""
For how long, in seconds, this host as a destination waits until its Open
vSwitch forwards for the ports of a tagged guest, before the migration may
begin. If they are not wired then, the migration fails, and the guest has not
been touched. 0 means not to look; the report says then that nobody knows the
network's part of the blackout.

It comes before Nova's own wait for Neutron's events
(``[DEFAULT]vif_plugging_timeout``), which goes on to hold.
"""),
    cfg.BoolOpt(
        'announce', default=True,
        help="""
Whether this host as a destination has QEMU announce a tagged guest (RARP) when
it resumes, and again when Nova has moved the binding of its ports, beside the
announcements that QEMU makes by itself for the first second.

It goes through QEMU's monitor, so libvirt notes that the domain is tainted.
"""),
    cfg.IntOpt(
        'poll_interval_ms', default=500, min=50, max=10000,
        help="""
How often, in milliseconds, to ask libvirt for the state of a migration when
no event has come. The end of a migration and the time limit do not wait for
it. A short interval costs QEMU monitor commands during the migration.
"""),
    cfg.ListOpt(
        'sinks', default=['log', 'instance_action'],
        help="""
Where the report of a migration goes: names from the entry point group
``nova_fastmig.sinks``. ``log`` writes it to nova-compute's log,
``instance_action`` adds it to the server's action events
(``openstack server event show``). A sink that fails is logged and does no
harm to the migration.
"""),
    cfg.StrOpt(
        'migrations_path', default='$state_path/fastmig/migrations',
        help="""
Directory in which nova-compute keeps a file for each migration of a tagged
server that leaves this host, as long as it runs. If nova-compute ends
meanwhile, its next start finishes the migration with it: Nova then has the
server at the host where it runs. Only nova-compute may read the files; those
of servers with volumes hold what Nova needs to detach them from this host.
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group; doing so twice is fine."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Entry point of oslo-config-generator and oslo-config-validator."""
    return [(GROUP, OPTS)]


def _bounds(group: cfg.ConfigOpts.GroupAttr, name: str,
            lowest: int, highest: int) -> model.Range:
    allowed = model.Range(lowest, highest)
    if lowest > highest:
        raise exception.InvalidSetting(
            f'highest_{name}', highest, f'at least lowest_{name} = {lowest}')
    default = group[f'default_{name}']
    if default not in allowed:
        raise exception.InvalidSetting(f'default_{name}', default,
                                       str(allowed))
    return allowed


def sla_settings(conf: cfg.ConfigOpts) -> model.SlaSettings:
    """Defaults and bounds for the extra specs of flavors.

    :raises: InvalidSetting if a default is outside its bounds
    """
    register_opts(conf)
    group = conf.fastmig
    return model.SlaSettings(
        default=model.Sla(
            max_downtime_ms=group.default_max_downtime_ms,
            max_total_ms=group.default_max_total_ms,
            on_miss=model.OnMiss(group.default_on_miss),
            parallel_connections=group.default_parallel_connections,
            qemu=model.QemuChoice(group.default_qemu)),
        max_downtime_ms=_bounds(
            group, 'max_downtime_ms', group.lowest_max_downtime_ms,
            group.highest_max_downtime_ms),
        max_total_ms=_bounds(
            group, 'max_total_ms', group.lowest_max_total_ms,
            group.highest_max_total_ms),
        parallel_connections=_bounds(
            group, 'parallel_connections', 1,
            group.highest_parallel_connections))


def qemu_features(conf: cfg.ConfigOpts) -> frozenset[model.QemuFeature]:
    """The features of the patched QEMU that the operator allows.

    :raises: InvalidSetting
    """
    register_opts(conf)
    names = conf.fastmig.qemu_features
    allowed = tuple(model.QemuFeature)
    for name in names:
        if name not in allowed:
            raise exception.InvalidSetting(
                'qemu_features', ','.join(names),
                f"no '{name}', any of " + ', '.join(allowed))
    return frozenset(map(model.QemuFeature, names))


def permitted_obstacles(conf: cfg.ConfigOpts) -> frozenset[model.Obstacle]:
    """What the operator permits in a tagged guest."""
    register_opts(conf)
    return frozenset(map(model.Obstacle, conf.fastmig.permitted_obstacles))


def transport_settings(conf: cfg.ConfigOpts) -> model.TransportSettings:
    """Nova's own options that a plan depends on."""
    return model.TransportSettings(
        tunnelled=conf.libvirt.live_migration_tunnelled,
        post_copy_permitted=conf.libvirt.live_migration_permit_post_copy,
        older_qemu_permitted=(
            conf.workarounds.skip_hypervisor_version_check_on_lm))

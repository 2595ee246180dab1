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

"""``nova-fastmig-status upgrade check``, on a compute host."""

import sys

import nova.conf
from oslo_upgradecheck import upgradecheck

from nova_fastmig.cmd import check
from nova_fastmig import exception
from nova_fastmig import opts

CONF = nova.conf.CONF

_CODES = {check.Status.OK: upgradecheck.Code.SUCCESS,
          check.Status.WARNING: upgradecheck.Code.WARNING,
          check.Status.FAILED: upgradecheck.Code.FAILURE}


class Checks(upgradecheck.UpgradeCommands):
    """What an upgrade of this package, or of Nova, can break."""

    def _result(self, item: check.Item) -> upgradecheck.Result:
        details = f'{item.found}: {item.todo}' if item.todo else item.found
        return upgradecheck.Result(_CODES[item.status], details)

    def _settings(self) -> upgradecheck.Result:
        """Bounds that were changed, or defaults that a release changed."""
        try:
            return self._result(check.check_settings(CONF))
        except exception.FastMigError as error:
            return upgradecheck.Result(upgradecheck.Code.FAILURE, str(error))

    def _driver(self) -> upgradecheck.Result:
        return self._result(check.check_driver(CONF))

    def _sinks(self) -> upgradecheck.Result:
        """Sinks of other packages may not be installed any more."""
        return self._result(check.check_sinks(CONF))

    def _seams(self) -> upgradecheck.Result:
        """The methods of Nova's driver that this one overrides."""
        try:
            # Importing it checks them: it derives from Nova's.
            from nova_fastmig import driver
        except ImportError as error:
            return upgradecheck.Result(
                upgradecheck.Code.FAILURE,
                f'this Nova cannot load the driver: {error}')
        stock, = driver.FastMigDriver.__bases__
        missing = sorted(
            name for name in vars(driver.FastMigDriver)
            if not name.startswith('__') and callable(
                getattr(driver.FastMigDriver, name))
            and not hasattr(stock, name))
        if missing:
            return upgradecheck.Result(
                upgradecheck.Code.FAILURE,
                f"Nova's driver has no {', '.join(missing)} any more; use a "
                f'release of nova-fastmig for this Nova')
        return upgradecheck.Result(upgradecheck.Code.SUCCESS)

    _upgrade_checks = (
        ('Compute driver', _driver),
        ("Nova's seams", _seams),
        ('SLA settings', _settings),
        ('Sinks', _sinks),
    )


def main(argv: list[str] | None = None) -> int:
    opts.register(CONF)
    return upgradecheck.main(
        CONF, project='nova', upgrade_command=Checks(),
        argv=sys.argv[1:] if argv is None else argv)

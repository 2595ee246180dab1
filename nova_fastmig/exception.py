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

"""Errors that say what was found and what would have been allowed."""


class FastMigError(Exception):
    """Base of this package's errors."""


class InvalidExtraSpec(FastMigError):
    """A ``fastmig:`` key of a flavor that cannot be used.

    :ivar key: the extra spec's name
    :ivar value: its value as stored in the flavor
    :ivar allowed: what would have been accepted
    """

    def __init__(self, key: str, value: str, allowed: str):
        self.key = key
        self.value = value
        self.allowed = allowed
        super().__init__(
            f"flavor extra spec '{key}' = '{value}' is not valid; "
            f"allowed: {allowed}")


class InvalidSetting(FastMigError):
    """Options of ``[fastmig]`` that contradict each other."""

    def __init__(self, option: str, value: object, allowed: str):
        super().__init__(
            f"[fastmig] {option} = {value} is not valid; allowed: {allowed}")


class PortsNotWired(FastMigError):
    """The guest would arrive at ports that do not forward."""

    def __init__(self, host: str, reason: str):
        super().__init__(f'{host}: {reason}')


class PlanRefused(FastMigError):
    """The hosts or Nova's configuration cannot do what the flavor asks.

    :ivar reasons: each names what is missing and where
    """

    def __init__(self, reasons: list[str]):
        self.reasons = tuple(reasons)
        super().__init__('; '.join(reasons))

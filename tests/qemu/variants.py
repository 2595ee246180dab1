# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Which binaries and capabilities the tests and measurements use."""

import os

from nova_fastmig import model
from tests.qemu import pair

# Every feature of the QEMU series that changes how a migration goes.
FEATURES = tuple(map(str, model.QemuFeature))
ALL = frozenset(FEATURES)
# Those on which the two sides agree; query-migrate lists them.
TWO_SIDED = frozenset(map(str, model.NEGOTIATED_FEATURES))
# What a migration without a return path cannot use.
NEED_RETURN_PATH = TWO_SIDED | {'x-drained-switchover'}
# The switches that take an old optimization away, for measurements.
MEASURE = ('x-measure-eager-cleanup', 'x-measure-sse2-zero-page',
           'x-measure-cpu-state-sync')


def binary(variable):
    """The QEMU that an environment variable names.

    There is no default: a test with another QEMU than the one that was
    meant proves nothing.
    """
    path = os.environ.get(variable)
    if not path:
        raise LookupError(f'{variable} is not set: it must name a '
                          'qemu-system-x86_64')
    if not os.access(path, os.X_OK):
        raise LookupError(f"{variable}: '{path}' cannot be executed")
    return path


def stock():
    return pair.Side(binary('QEMU_STOCK'))


def patched(capabilities=ALL, **parameters):
    return pair.Side(binary('QEMU_PATCHED'), frozenset(capabilities),
                     parameters)


def sides(name):
    """The Side of a variant by its name.

    'stock', 'off' (patched, everything off), 'all', or one or more
    capabilities with '+' between them.
    """
    if name == 'stock':
        return stock()
    if name == 'off':
        return patched(())
    if name == 'all':
        return patched()
    capabilities = name.split('+')
    unknown = set(capabilities) - ALL - set(MEASURE)
    if unknown:
        raise ValueError(f"variant '{name}': must be stock, off, all, or "
                         'capabilities joined by "+": '
                         f"{', '.join([*FEATURES, *MEASURE])}")
    return patched(capabilities)


EACH = ('stock', 'off', *FEATURES, 'all')

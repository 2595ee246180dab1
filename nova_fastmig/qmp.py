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

"""What a guest's QEMU is told and asked past libvirt, by its monitor."""

import json
import typing as ty

import libvirt_qemu
from nova import monkey_patch


def api():
    """libvirt_qemu, to be called so that nobody but the caller waits.

    A QEMU that hangs does not answer, and under eventlet all of nova-compute
    would wait with the caller. Nova's proxies have the methods of libvirt's
    objects called in native threads, but these are functions of a module.
    """
    if not monkey_patch.is_patched():
        return libvirt_qemu
    # Nova 34 without eventlet does not allow this import.
    from eventlet import tpool
    return tpool.Proxy(libvirt_qemu)


def execute(domain, command: str, **arguments) -> ty.Any:
    """Have the guest's QEMU do what libvirt has no words for.

    :param domain: libvirt.virDomain
    :raises: libvirt.libvirtError; ValueError or KeyError if QEMU refuses
    """
    return json.loads(api().qemuMonitorCommand(
        domain, json.dumps({'execute': command, 'arguments': arguments}),
        0))['return']

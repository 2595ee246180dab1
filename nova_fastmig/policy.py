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

"""Plan and what was seen -> Decision. Pure."""

from nova_fastmig import model


def decide(plan: model.Plan, elapsed_ms: float, paused: bool,
           post_copy_started: bool,
           post_copy_possible: bool,
           give_up_ms: int | None) -> model.Decision:
    """Say what to do with a running migration.

    The limits of the plan are never relaxed here: a migration that runs out
    of time is aborted, or goes the way that the flavor chose with
    ``fastmig:on_miss``.

    :param elapsed_ms: since libvirt's start
    :param paused: the guest stands still already, so the switchover is under
        way and interrupting it could only make the blackout longer
    :param post_copy_started: there is no way back from post-copy
    :param post_copy_possible: False for a guest that cannot do it, and after
        a failed attempt
    :param give_up_ms: when a migration that may proceed is aborted after
        all; None for never
    """
    keep_on = model.Action.CONTINUE
    if elapsed_ms <= plan.total_limit_ms:
        return model.Decision(keep_on, 'within the time limit')
    late = f'{elapsed_ms:.0f} ms of {plan.total_limit_ms} ms are over'
    if post_copy_started:
        return model.Decision(keep_on, f'{late}; post-copy is under way')
    if paused:
        return model.Decision(keep_on, f'{late}; the switchover is under way')
    match plan.sla.on_miss:
        case model.OnMiss.ABORT:
            return model.Decision(
                model.Action.ABORT, f'{late} before the switchover')
        case model.OnMiss.POST_COPY if post_copy_possible:
            return model.Decision(
                model.Action.POST_COPY, f'{late} before the switchover')
        case model.OnMiss.POST_COPY:
            return model.Decision(
                model.Action.ABORT,
                f'{late} before the switchover; post-copy is not possible')
        case model.OnMiss.PROCEED if give_up_ms and elapsed_ms > give_up_ms:
            return model.Decision(
                model.Action.ABORT,
                f'{elapsed_ms:.0f} ms are over and Nova gives up after '
                f'{give_up_ms} ms ([libvirt]live_migration_completion_timeout)'
            )
        case model.OnMiss.PROCEED:
            return model.Decision(
                keep_on, f'{late}; the flavor says to proceed')

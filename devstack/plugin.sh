#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# DevStack sources this file with a mode and a phase. What is done in a phase
# is in lib/nova-fastmig.

source "$FASTMIG_DEVSTACK_DIR/lib/nova-fastmig"

# A host without compute and API service, such as one for networking only,
# needs nothing of this.
if is_service_enabled n-cpu n-api tempest; then
    case $1-${2:-} in
        stack-pre-install)
            echo_summary "Checking settings and host for nova-fastmig"
            check_nova_fastmig
            ;;
        stack-install)
            echo_summary "Installing nova-fastmig"
            install_nova_fastmig
            ;;
        stack-post-config)
            echo_summary "Configuring nova-fastmig"
            configure_nova_fastmig
            ;;
        stack-extra)
            echo_summary "Initializing nova-fastmig"
            init_nova_fastmig
            ;;
        stack-test-config)
            configure_tempest_nova_fastmig
            ;;
        unstack-*)
            stop_nova_fastmig
            ;;
        clean-*)
            cleanup_nova_fastmig
            ;;
    esac
fi

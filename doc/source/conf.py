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

from importlib import metadata

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
]

project = 'nova-fastmig'
copyright = 'nova-fastmig developers'
# Of the installed package, so that a source archive without git builds too.
openstackdocs_auto_name = False
openstackdocs_auto_version = False
release = version = metadata.version(project)

config_generator_config_file = (
    '../../etc/nova-fastmig/nova-fastmig-config-generator.conf')
sample_config_basename = '_static/nova-fastmig'

# They take openstack.org's menus and licence out of the theme.
templates_path = ['_templates']
html_theme = 'openstackdocs'
html_theme_options = {
    # The theme's defaults are those of docs.openstack.org.
    'analytics_tracking_code': '',
    'display_badge': False,
    'root_title': project,
}
# Nova's own documentation.
openstackdocs_projects = ['nova']

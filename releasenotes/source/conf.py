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

extensions = [
    'openstackdocstheme',
    'reno.sphinxext',
]

project = 'nova-fastmig release notes'
copyright = 'nova-fastmig developers'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
# Release notes are for all versions.
release = version = ''

# They take openstack.org's menus and licence out of the theme.
templates_path = ['../../doc/source/_templates']
html_theme = 'openstackdocs'
html_theme_options = {
    # The theme's defaults are those of docs.openstack.org.
    'analytics_tracking_code': '',
    'display_badge': False,
    'root_title': 'nova-fastmig',
}

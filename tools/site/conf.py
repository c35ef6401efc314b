"""Sphinx's settings for the site. tools/build_site.py prepares what is built and says where, see there."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = html_title = "Learning without labels"
author = "The authors of Learning without labels"
project_copyright = "the authors; text and pictures CC BY 4.0, code MIT"
language = "en"
extensions = ["myst_nb", "sphinx_copybutton", "mend"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code of this cell"
nb_code_prompt_hide = "Hide the code of this cell"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_math_renderer = "katex_later"
html_use_index = False
html_domain_indices = False
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_permalinks_icon = "#"
html_theme_options = {"top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp"
copybutton_selector = "div.cell_input div.highlight pre, div.highlight-python pre, div.highlight-default pre"

# With an address come the pages that need one: cards for those who share a link, and a map for search engines.
html_baseurl = os.environ.get("SITE_URL", "")
if html_baseurl:
    extensions += ["sphinxext.opengraph", "sphinx_sitemap"]
    ogp_site_url = html_baseurl
    ogp_site_name = project
    ogp_use_first_image = True
    ogp_social_cards = {"enable": False}
    ogp_description_length = 160
    sitemap_url_scheme = "{link}"
    sitemap_show_lastmod = False
    sitemap_excludes = ["search.html"]

"Sphinx's settings for the site; `python docs/make_site.py` writes the pages that it reads."
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

project, author, language = "RLStudio", "The RLStudio developers", "en"
project_copyright = "The RLStudio developers; all rights reserved"
extensions = ["myst_nb", "sphinx_copybutton", "mathml", "modules"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# Notebooks are shown with the outputs that they have stored; nothing runs while the site is built.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show {type}"
nb_code_prompt_hide = "Hide {type}"
myst_enable_extensions = ["dollarmath", "amsmath", "fieldlist", "colon_fence"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
math_numfig = False

html_theme, html_title, html_static_path = "furo", "RLStudio", [str(HERE / "static")]
html_extra_path = [os.environ["RLSTUDIO_SITE_COPIES"]]   # files of the repository that a page links to
html_favicon, templates_path = str(HERE / "static" / "icon.svg"), [str(HERE / "templates")]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_math_renderer = "mathml"
html_copy_source, html_show_sourcelink, html_show_sphinx = False, False, False
html_last_updated_fmt, smartquotes = None, False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
highlight_language = "none"   # a fence without a language is text
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5f8b", "color-brand-content": "#1f5f8b", "color-link": "#1f5f8b"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f5", "color-brand-content": "#7cc4f5", "color-link": "#7cc4f5"},
}
python_maximum_signature_line_length = 88
toc_object_entries = False
add_module_names = False
modindex_common_prefix = ["rlstudio."]
copybutton_prompt_text = r"^\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure"]

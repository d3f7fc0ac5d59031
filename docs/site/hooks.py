"""What MkDocs asks for while it builds: the navigation, and formulas on the pages that have any."""

import os

from docs.site import pages, reference


def on_config(config):
    """Give MkDocs the navigation."""
    config.nav = pages.navigation(pages.assembled())
    return config


def on_pre_build(config):
    """Write the pages again; only those that changed are touched, so that `--serve` builds once."""
    pages.write(pages.assembled())


def on_post_build(config):
    """Read everything again the next time."""
    for kept in (pages.assembled, reference.modules, reference.addresses):
        kept.cache_clear()


def on_page_content(html, page, config, files):
    """Load pictures when they come into view, except the first of a page."""
    first, tag, rest = html.partition("<img ")
    return first + tag + rest.replace("<img ", '<img loading="lazy" ')


def on_post_page(output, page, config):
    """Load KaTeX on the pages with formulas only."""
    if 'class="arithmatex"' not in output:
        return output
    up = os.path.relpath("assets", os.path.dirname(page.url) or ".")
    head = f'<link rel="stylesheet" href="{up}/katex.css"></head>'
    body = f'<script src="{up}/katex.js"></script><script src="{up}/formulas.js"></script></body>'
    return output.replace("</head>", head, 1).replace("</body>", body, 1)

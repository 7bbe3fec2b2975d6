"""The chat playground in a real browser."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from ui_site import NAME, PHONE, Site, opened, playwright

from baton.core.errors import Overloaded

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect = playwright.expect


async def say(page: Any, text: str) -> None:
    await page.fill("#prompt", text)
    await page.keyboard.press("Enter")


def answers(page: Any) -> Any:
    return page.locator(".message.model")


async def test_an_answer_streams_and_says_who_served_it(browser: Any, site: Site) -> None:
    site.router.answers = ["Hello **there**, friend."]
    site.router.gate = asyncio.Event()
    async with opened(browser, site) as page:
        await expect(page.locator("#empty-model")).to_have_text(NAME)
        await page.fill("[name=system]", "Be kind.")
        await page.fill("[name=temperature]", "0.5")
        await page.fill("[name=max_tokens]", "50")
        await say(page, "Hello!")
        # The first token is shown while the others are not there yet.
        await expect(answers(page)).to_have_attribute("aria-busy", "true")
        await expect(answers(page).locator(".text")).not_to_have_text("")
        await expect(page.locator("#stop")).to_be_visible()
        site.router.gate.set()
        await expect(answers(page).locator("strong")).to_have_text("there")
        await expect(answers(page)).to_have_attribute("aria-busy", "false")
        await expect(page.locator("#announce")).to_contain_text("The answer is complete")
        stats = await answers(page).locator(".stats").inner_text()
        assert "16 cached" in stats and "tok/s" in stats and "first token" in stats
        route = await answers(page).locator(".route").text_content()
        assert "prefill-0" in route and "decode-0" in route and "3.0 MiB, 8.0 ms, 75% hidden" in route
        request = site.router.requests[0]
        assert (request.sampling.temperature, request.sampling.max_tokens) == (0.5, 50)
        assert "Be kind." in site.router.prompt() and "Hello!" in site.router.prompt()
        assert await page.evaluate("document.activeElement.id") == "prompt"


async def test_who_is_faster_than_the_list_of_models_gets_an_answer(browser: Any, site: Site) -> None:
    site.router.answers = ["Here."]
    listed = asyncio.Event()

    async def held(route: Any) -> None:
        await listed.wait()
        await route.continue_()

    async with opened(browser, site) as page:
        await page.route("**/v1/models", held)
        await page.reload()
        await say(page, "Anybody?")
        await expect(answers(page)).to_have_attribute("aria-busy", "true")
        assert not site.router.requests
        listed.set()
        await expect(answers(page).locator(".text")).to_have_text("Here.")


async def test_stop_regenerate_and_come_back(browser: Any, site: Site) -> None:
    site.router.answers = ["One two three four.", "Another answer."]
    site.router.gate = asyncio.Event()
    async with opened(browser, site) as page:
        await say(page, "Count.")
        await expect(answers(page).locator(".text")).not_to_have_text("")
        await page.keyboard.press("Escape")
        await expect(answers(page).locator(".why")).to_have_text("Stopped.")
        site.router.gate.set()
        await page.get_by_role("button", name="Regenerate").click()
        await expect(answers(page).locator(".text")).to_have_text("Another answer.")
        assert await answers(page).count() == 1 and site.router.prompt(0) == site.router.prompt(1)
        await page.reload()
        await expect(answers(page).locator(".text")).to_have_text("Another answer.")
        await expect(page.locator(".message.user")).to_have_text("Count.")
        await page.get_by_role("button", name="New conversation").click()
        await expect(page.locator("#empty")).to_be_visible()
        await page.reload()
        assert await page.locator(".message").count() == 0


HOSTILE = """# Title
<img src=x onerror="document.title='owned'"> <script>document.title='owned'</script>

[good](https://example.org/a_(b)) [bad](javascript:alert(1)) ![picture](https://example.org/p.png)

- one
  - nested `<b>`
- two

```html
<p onclick="x">**not bold**</p>
```

| a | b |
|---|---|
| 1 \\| 2 | <i>3</i> |
"""


async def test_markdown_is_shown_and_never_run(browser: Any, site: Site) -> None:
    site.router.answers = [HOSTILE]
    async with opened(browser, site) as page:
        await say(page, "Show me.")
        text = answers(page).locator(".text")
        await expect(text.locator("table td").first).to_have_text("1 | 2")
        assert await text.locator("img, script, i, p[onclick], b").count() == 0
        assert "<img src=x" in await text.inner_text()
        links = await text.locator("a").evaluate_all(
            "links => links.map(link => [link.textContent, link.href, link.rel])"
        )
        safe = "noopener noreferrer nofollow"
        assert links == [
            ["good", "https://example.org/a_(b)", safe], ["picture", "https://example.org/p.png", safe],
        ]  # fmt: skip
        assert await text.locator("ul > li > ul > li code").inner_text() == "<b>"
        assert await text.locator("pre code").inner_text() == '<p onclick="x">**not bold**</p>'
        assert await page.title() == "Baton"
        # Even code of the page itself could not make markup of text.
        refused = "document.body.innerHTML = '<p>x</p>'"
        with pytest.raises(playwright.Error, match="TrustedHTML"):
            await page.evaluate(refused)
        site.complaints.clear()  # which the console repeats


RENDER = """async source => {
  const {render} = await import(new URL("ui/markdown.js", location.href));
  const target = document.createElement("div");
  render(target, source);
  return [target.textContent.split("a").length - 1, target.querySelectorAll("code").length];
}"""


async def test_long_texts_of_any_kind_are_drawn(browser: Any, site: Site) -> None:
    """A model that loops must not take the browser along: what cost the square of the length would not end here."""
    async with opened(browser, site) as page:
        for part in ("**a ", "*a ", "_a ", "~~a ", "[a](", "> ", "| a ", "  ", "`x` "):
            source = part * 20_000
            assert await page.evaluate(RENDER, source) == [source.count("a"), source.count("`x`")]


async def test_reasoning_and_tools(browser: Any, site: Site) -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Lisbon"}}</tool_call>'
    site.router.answers = [f"<think>I must look.</think>{call}", "It is sunny."]
    async with opened(browser, site) as page:
        await page.click("#tools-group summary")
        await page.click("[data-example=tools]")
        await say(page, "Weather in Lisbon?")
        card = page.locator(".call")
        await expect(card.locator(".call-name")).to_have_text("get_weather")
        assert json.loads(await card.locator("pre").first.inner_text()) == {"city": "Lisbon"}
        thinking = answers(page).locator(".thinking")
        await expect(thinking.locator(".markdown")).to_have_text("I must look.")
        assert await answers(page).locator(".text").inner_text() == ""
        await page.get_by_role("textbox", name="Result").fill("sunny, 18 degrees")
        await page.get_by_role("button", name="Send result").click()
        await expect(answers(page).nth(1).locator(".text")).to_have_text("It is sunny.")
        assert "sunny, 18 degrees" in site.router.prompt() and "get_weather" in site.router.prompt(0)
        await expect(card.locator(".given")).to_have_text("sunny, 18 degrees")
        assert await page.get_by_role("button", name="Send result").count() == 0


async def test_a_json_schema(browser: Any, site: Site) -> None:
    site.router.answers = ['{"name": "A", "age": 1}']
    async with opened(browser, site) as page:
        await page.click("#schema-group summary")
        await page.fill("[name=schema]", '{"type": "object"')
        await say(page, "Who?")
        await expect(page.locator("#schema-error")).to_contain_text("This is not JSON")
        assert await page.evaluate("document.activeElement.name") == "schema" and not site.router.requests
        await expect(page.locator("#failure")).to_contain_text("JSON schema: This is not JSON")
        await page.click("[data-example=schema]")
        await page.press("#prompt", "Enter")  # what was typed is still there
        await expect(answers(page).locator(".text")).to_contain_text('"age": 1')
        assert await page.locator(".message.user").count() == 1
        structure = site.router.requests[0].sampling.structure
        assert '"properties": {"name"' in structure.text.replace('":{', '": {') and '"age"' in structure.text


async def test_a_number_out_of_range_is_not_sent(browser: Any, site: Site) -> None:
    async with opened(browser, site) as page:
        await page.fill("[name=temperature]", "3")
        await say(page, "Hello!")
        await expect(page.locator("#failure")).to_contain_text("Temperature: Value must be less than or equal to 2.")
        await expect(page.locator("[name=temperature]")).to_be_focused()
        assert not site.router.requests and await page.locator(".message").count() == 0


async def test_errors_say_what_helps(browser: Any, site: Site) -> None:
    site.router.down = Overloaded("no worker had room", retry_after_s=2.0)
    async with opened(browser, site) as page:
        await say(page, "Hello?")
        failure = page.get_by_role("alert").filter(has_text="no worker had room")
        await expect(failure).to_contain_text("It may work again in 2 s.")
        site.router.down = None
        site.router.answers = ["Here I am."]
        await failure.get_by_role("button", name="Try again").click()
        await expect(answers(page).locator(".text")).to_have_text("Here I am.")
        await expect(failure).to_be_hidden()
        assert await page.locator(".message.user").count() == 1
        await page.context.set_offline(True)
        await say(page, "And now?")
        await expect(page.locator("#failure")).to_contain_text("The gateway cannot be reached.")


async def test_an_api_key(browser: Any, site: Site) -> None:
    site.router.answers = ["Welcome."]
    async with opened(browser, site) as page:

        async def guard(route: Any) -> None:
            if route.request.headers.get("authorization") == "Bearer sk-1":
                await route.continue_()
            else:
                await route.fulfill(status=401, json={"error": {"message": "You didn't provide an API key."}})

        await page.route("**/v1/**", guard)
        await page.reload()
        await page.get_by_role("button", name="Enter an API key").click()
        assert await page.evaluate("document.activeElement.name") == "key"
        await page.keyboard.type("sk-1")
        await expect(page.locator("[name=model]")).to_have_value(NAME)
        await say(page, "Hello!")
        await expect(answers(page).locator(".text")).to_have_text("Welcome.")
        kept = "[JSON.stringify(localStorage), JSON.stringify(sessionStorage)].map(text => text.includes('sk-1'))"
        assert await page.evaluate(kept) == [False, True]
        await page.get_by_label("Remember it in this browser").check()
        assert await page.evaluate(kept) == [True, True]


async def test_by_keyboard_alone(browser: Any, site: Site) -> None:
    site.router.answers = ["Yes."]
    async with opened(browser, site) as page:
        await expect(page.locator("#empty-model")).to_have_text(NAME)
        order = []
        for _ in range(9):
            await page.keyboard.press("Tab")
            order.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert order[:5] == ["skip", "Baton", "Chat", "Cluster", "theme"]
        assert order[-1] == "prompt", "examples, then the message box"
        await page.keyboard.type("Line one")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("line two")
        await page.keyboard.press("Enter")
        await expect(answers(page).locator(".text")).to_have_text("Yes.")
        assert "Line one\nline two" in site.router.prompt()


HIDDEN_BELOW = """() => {
  const {scrollHeight, scrollTop, clientHeight} = document.getElementById("scroll");
  return scrollHeight - scrollTop - clientHeight;
}"""
SMALL_CONTROLS = """() => [...document.querySelectorAll("button, .bar a")]
  .filter(one => one.offsetParent && one.getBoundingClientRect().height < 32).map(one => one.textContent.trim())"""
MOVING = """() => document.getAnimations().length + [...document.querySelectorAll("*")]
  .filter(one => parseFloat(getComputedStyle(one).transitionDuration)).length"""


async def test_every_control_has_a_name(browser: Any, site: Site) -> None:
    async with opened(browser, site) as page:
        await page.evaluate("document.querySelectorAll('details').forEach(group => { group.open = true; })")
        session = await page.context.new_cdp_session(page)
        nodes = (await session.send("Accessibility.getFullAXTree"))["nodes"]
        controls = {"button", "textbox", "combobox", "spinbutton", "checkbox", "link", "searchbox"}
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if node.get("role", {}).get("value") in controls and not node.get("ignored")
        ]
        assert len(named) > 25 and all(name for _, name in named), named


async def test_on_a_phone(browser: Any, site: Site) -> None:
    site.router.answers = ["A word. " * 60 + "`" + "x" * 200 + "`"]
    async with opened(browser, site, size=PHONE, has_touch=True) as page:
        await expect(page.locator("#options")).to_be_hidden()
        await page.get_by_role("button", name="Settings").tap()
        await expect(page.locator("[name=system]")).to_be_visible()
        assert await page.evaluate("document.getElementById('conversation').inert")
        await page.keyboard.press("Escape")
        await expect(page.locator("#options")).to_be_hidden()
        assert await page.evaluate("document.activeElement.id") == "open-options"
        await page.fill("#prompt", "Go on.")
        await page.get_by_role("button", name="Send").tap()
        await expect(answers(page).locator(".stats")).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert await page.evaluate(HIDDEN_BELOW) < 2, "the end of the answer is in view"
        small = await page.evaluate(SMALL_CONTROLS)
        assert not small, "too small for fingers"


async def test_themes_and_motion(browser: Any, site: Site) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    async with opened(browser, site, color_scheme="dark", reduced_motion="reduce") as page:
        assert await page.evaluate(ground) == "rgb(21, 23, 27)"
        await page.click("#theme")  # light
        assert await page.evaluate(ground) == "rgb(250, 248, 244)"
        await page.reload()
        assert await page.evaluate(ground) == "rgb(250, 248, 244)"
        assert await page.evaluate(MOVING) == 0

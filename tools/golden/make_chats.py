#!/usr/bin/env python3
"""Writes tests/fixtures/chat/*.json: what Hugging Face's apply_chat_template makes of templates and conversations.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install 'transformers==4.57.*' jinja2 && /tmp/v/bin/python tools/golden/make_chats.py

Each file: {"name", "template", "cases": [{"variables", "expected"} or {"variables", "error"}]}. Text that depends on the
day stands as @TODAY(format)@. The templates are compact re-creations of what the families publish: the same constructs
and the same text around the messages; SmolLM2's is the published one (Apache-2.0).
"""
import json
import re
from datetime import datetime
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "chat"

SYSTEM = {"role": "system", "content": "  Be brief. "}
USER = {"role": "user", "content": " What is 2+2?\n"}
ANSWER = {"role": "assistant", "content": "4 "}
AGAIN = {"role": "user", "content": "And «3×3», 日本語 \U0001f642 <b>&'\"?"}
THOUGHT = {"role": "assistant", "content": "<think>\nThree times three.\n</think>\n\nNine."}
THANKS = {"role": "user", "content": "Thanks"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {
    "name": "weather", "arguments": {"city": "Köln", "days": 2, "exact": True, "scale": 1.5, "none": None}}}]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"blue\"}"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Its name"}, "days": {"type": "integer"}},
    "required": ["city"]}}}]

CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, AGAIN],
    "system-turns": [SYSTEM, USER, ANSWER, AGAIN, THOUGHT, THANKS],
    "ends-with-answer": [SYSTEM, USER, THOUGHT],
    "wrong-order": [USER, USER],
    "answer-first": [ANSWER, USER],
    "empty": [],
    "tool": [SYSTEM, USER, CALL, RESULT],
    "two-tools": [USER, CALL, RESULT, RESULT, THOUGHT, THANKS],
    "no-content": [{"role": "user"}],
    "none-content": [USER, {"role": "assistant", "content": None}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "text", "text": " this"}]}],
}

TEMPLATES = {}

TEMPLATES["llama-2-chat"] = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")

TEMPLATES["llama-3"] = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

LLAMA_31 = r'''{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    DATE
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message is taken out, so that it can be written where it belongs. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System and built-in tools #}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You have access to these functions. Answer with JSON for a function call.\n\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
    {{- "Given these functions, answer with JSON for a function call.\n\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
            {{- "<|python_tag|>" + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}
                {{- arg_name + '="' ~ arg_val ~ '"' }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- endif %}
            {%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
            {{- '{"name": "' + tool_call.name + '", ' }}
            {{- '"parameters": ' }}
            {{- tool_call.arguments | tojson }}
            {{- "}" }}
        {%- endif %}
        {%- if builtin_tools is defined %}
            {{- "<|eom_id|>" }}
        {%- else %}
            {{- "<|eot_id|>" }}
        {%- endif %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
'''
TEMPLATES["llama-3.1"] = LLAMA_31.replace("DATE", '{%- set date_string = "26 Jul 2024" %}')
TEMPLATES["llama-3.2"] = LLAMA_31.replace("DATE", """{%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}""")

TEMPLATES["mistral-v0.1"] = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")

TEMPLATES["mistral-v0.3"] = r'''{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- This block checks for alternating user/assistant messages, skipping tool calling messages #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
'''

TEMPLATES["zephyr"] = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")

TEMPLATES["smollm"] = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

TEMPLATES["smollm2"] = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role']"
    " + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

TEMPLATES["smollm3"] = r'''{# ───── defaults ───── #}
{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}
{%- endif -%}

{# ───── reasoning mode ───── #}
{%- if enable_thinking -%}
  {%- set reasoning_mode = "/think" -%}
{%- else -%}
  {%- set reasoning_mode = "/no_think" -%}
{%- endif -%}

{# ───── header (system message) ───── #}
{{- "<|im_start|>system\n" -}}

{%- if messages[0].role == "system" -%}
  {%- set system_message = messages[0].content -%}
  {%- if "/no_think" in system_message -%}
    {%- set reasoning_mode = "/no_think" -%}
  {%- elif "/think" in system_message -%}
    {%- set reasoning_mode = "/think" -%}
  {%- endif -%}
  {%- set custom_instructions = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}

{%- if "/system_override" in system_message -%}
  {{- custom_instructions.replace("/system_override", "").rstrip() -}}
  {{- "<|im_end|>\n" -}}
{%- else -%}
  {{- "## Metadata\n\n" -}}
  {{- "Knowledge Cutoff Date: June 2025\n" -}}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Today Date: " ~ today ~ "\n" -}}
  {{- "Reasoning Mode: " + reasoning_mode + "\n\n" -}}

  {{- "## Custom Instructions\n\n" -}}
  {%- if custom_instructions -%}
    {{- custom_instructions + "\n\n" -}}
  {%- elif reasoning_mode == "/think" -%}
    {{- "Think step by step; write <think> Thought section </think> Solution section.\n\n" -}}
  {%- else -%}
    {{- "You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n" -}}
  {%- endif -%}

  {%- if xml_tools or python_tools or tools -%}
    {{- "### Tools\n\n" -}}
    {%- if xml_tools or tools -%}
      {%- if tools -%}
        {%- set xml_tools = tools -%}
      {%- endif -%}
      {%- set ns = namespace(xml_tool_string="You may call one or more functions.\n\n<tools>\n") -%}
      {%- for tool in xml_tools[:] -%} {# The slicing makes sure that xml_tools is a list #}
        {%- set ns.xml_tool_string = ns.xml_tool_string ~ (tool | string) ~ "\n" -%}
      {%- endfor -%}
      {%- set xml_tool_string = ns.xml_tool_string + "</tools>\n\nFor each call, return a JSON object.\n" -%}
      {{- xml_tool_string -}}
    {%- endif -%}
    {%- if python_tools -%}
      {%- set ns = namespace(python_tool_string="Python functions:\n") -%}
      {%- for tool in python_tools[:] -%}
        {%- set ns.python_tool_string = ns.python_tool_string ~ (tool | string) ~ "\n" -%}
      {%- endfor -%}
      {{- ns.python_tool_string -}}
    {%- endif -%}
    {{- "\n\n" -}}
    {{- "<|im_end|>\n" -}}
  {%- endif -%}
{%- endif -%}
{# ───── main loop ───── #}
{%- for message in messages -%}
  {%- set content = message.content if message.content is string else "" -%}
  {%- if message.role == "user" -%}
    {{ "<|im_start|>" + message.role + "\n"  + content + "<|im_end|>\n" }}
  {%- elif message.role == "assistant" -%}
    {% generation %}
    {%- if reasoning_mode == "/think" -%}
      {{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- else -%}
      {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}
    {%- endif -%}
    {% endgeneration %}
  {%- elif message.role == "tool" -%}
    {{ "<|im_start|>" + "user\n"  + content + "<|im_end|>\n" }}
  {%- endif -%}
{%- endfor -%}
{# ───── generation prompt ───── #}
{%- if add_generation_prompt -%}
  {%- if reasoning_mode == "/think" -%}
    {{ "<|im_start|>assistant\n" }}
  {%- else -%}
    {{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n"  }}
  {%- endif -%}
{%- endif -%}
'''

TEMPLATES["qwen2"] = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

TEMPLATES["qwen2.5"] = r'''{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions.\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
'''

TEMPLATES["qwen3"] = r'''{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
'''

TEMPLATES["deepseek-v2"] = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")

TEMPLATES["deepseek-v3"] = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
    "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}"
    "{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['tool_calls'] %}{%- set ns.is_tool = false -%}"
    "{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{%- if not message['content'] %}"
    "{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\n' + '```json' + '\n' + (tool['function']['arguments'] | tojson) + '\n' + '```' + '<｜tool▁call▁end｜>'}}"
    "{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜tool▁calls▁begin｜>'}}{%- endif %}"
    "{%- set ns.is_first = true -%}{%- else %}{{'\n' + '<｜tool▁call▁begin｜>' + tool['type']}}{%- endif %}{%- endfor %}"
    "{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and not message['tool_calls'] %}{%- if ns.is_tool %}"
    "{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}"
    "{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- set ns.is_output_first = false %}"
    "{%- else %}{{'\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endif %}{%- endfor -%}"
    "{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}")

# One construct each, rendered with VARIABLES.
VARIABLES = {
    "n": 7, "x": 2.5, "big": 1e16, "small": 0.00001, "t": True, "f": False, "none": None, "s": " Hello, Wörld \n", "empty": "",
    "words": ["pear", "Apple", "fig", "apple"], "nums": [3, 1, 2, 3], "mixed": [1, "a", None, True, 2.0, [1], {"k": "v"}],
    "d": {"b": 1, "a": [1, 2], "items": "own", "C": None}, "people": [
        {"name": "Ann", "age": 3, "tags": ["x", "y"]}, {"name": "bob", "age": 1}, {"name": "Cy", "age": 2, "tags": []}],
    "uni": "añ日本🙂é", "lines": "one\ntwo\n\nthree", "quote": "it's", "both": "it's \"so\"", "html": "<a href='x'>&\"</a>",
    "nested": {"a": {"b": [{"c": 5}]}}, "messages": [SYSTEM, USER, ANSWER],
}

SYNTHETIC = {
    "whitespace": [
        "a\n  {% if t %}\n  b\n  {% endif %}\nc\n", "a \n {%- if t -%} \n b \n {%- endif -%} \n c", "  {% if t %} x {% endif %}  ",
        "  {%+ if t %}x{% endif +%}\ny", "a\n  {# c #}\nb", "a {#- c -#} b", "{# {{ n }} {% if %} #}z", "a\n\n{% if t %}\n\nb{% endif %}\n\n",
        "{{ n }}\n{{ n }}\n", "{{- n -}}\n  {{ n }}", "\r\na\r\n{% if t %}\r\nb{% endif %}\rc", "{% raw %}{{ n }} {% if %}{% endraw %}!",
        "a {%- raw -%}  {{ x }}  {%- endraw -%} b", "  {% raw %}\n x\n  {% endraw %}\ny", "x\n    {{ n }}\n    {% set a = 1 %}\n    {{ a }}",
        "{% if t -%}\n   a\n{%- endif %} b", "\t{% if t %}a{% endif %}", "a{% if t %} \n b{% endif %}", "{{ '}}' }}{{ '{%' }}{{ \"%}\" }}",
        "{{ {'a': {'b': 1}}['a']['b'] }}", "{%if t%}x{%endif%}", "{{n}}{{-n}}", "{ { } } {%- if f %}{% endif -%} # } {", "a\n", "a\n\n", "\n",
        "\u00a0{%- if t %}x{% endif -%}\u2003y",
    ],
    "literals": [
        "{{ 'a\\n\\t\\\\\\'\\x41\\u00e9\\U0001F642\\101\\q' }}", '{{ "q\'q" }}', "{{ 1 }} {{ 1.0 }} {{ 1e3 }} {{ 1_000 }} {{ 2.50 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}",
        "{{ [1, 'a', none, true, 2.0] }} {{ (1,) }} {{ (1, 2) }} {{ () }} {{ [] }} {{ {} }} {{ {'a': 1, 2: [3]} }}", "{{ true }} {{ True }} {{ false }} {{ None }} {{ none }}",
        "{{ 'a' 'b' \"c\" }}", "{{ 1, 2 }}", "{{ 'it\\'s' | list }}", "{{ [quote, both, uni, '\\n\\x07\\u200b\\\\'] }}", "{{ big }} {{ small }} {{ x }} {{ 123456789.123 }} {{ 1e22 }} {{ 1e15 }}",
        "{{ 'tail', }}", "{{ [1, 2, ] }} {{ {'a': 1, } }}", "{{ \"multi\nline\" }}",
    ],
    "operators": [
        "{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 3 }} {{ 2 ** 3 ** 2 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}",
        "{{ 'a' ~ 1 ~ none ~ [1] ~ missing }}", "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 3 }} {{ [0] * 3 }} {{ 2 * 'x' }} {{ (1,) + (2,) }}",
        "{{ 1 == 1.0 }} {{ 1 == '1' }} {{ true == 1 }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1.0} }} {{ none == missing }} {{ missing == missing2 }}",
        "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 3 >= 3 > 2 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 1 != 2 }} {{ 1 <= 0.5 }}",
        "{{ 1 in [1, 2] }} {{ 3 not in [1] }} {{ 'a' in 'cat' }} {{ 'b' in d }} {{ 'z' not in d }} {{ 'a' in missing }} {{ not 1 in [2] }}",
        "{{ t and 'x' }} {{ f or 'y' }} {{ empty or none or 0 }} {{ not empty }} {{ not not n }} {{ f and missing.x }}",
        "{{ 'a' if t else 'b' }} {{ 'a' if f else 'b' if f else 'c' }} {{ 'a' if f }}|{{ ('x' if t) ~ '!' }}",
        "{{ -n }} {{ +n }} {{ -(-n) }} {{ - 2.5 }} {{ -1 | abs }} {{ (1 + 2) * 3 }} {{ not t == f }}", "{{ 'a %s b %d %.2f %5s|%-5s|%05d %x %r %%' % ('x', 3, 2.5, 'q', 'w', 42, 255, 'z') }} {{ '%s' % 1 }}",
        "{{ 1.0 // 0.1 }} {{ -7.5 % 2.5 }} {{ -1.0 // 3 }} {{ 7 % -3 }} {{ 7.5 % -2 }} {{ 0.0 // -5 }}", "{{ true + true }} {{ true * 3 }} {{ 10 / 4 }} {{ 10 / 5 }}", "{{ 'ab' == 'ab' and 'x' is string }}", "{{ n is odd and not n is even or f }}",
    ],
    "access": [
        "{{ d.b }} {{ d['b'] }} {{ d.a[0] }} {{ d.a.1 }} {{ d['items'] }} {{ nested.a.b[0].c }} {{ nested['a']['b'][-1]['c'] }}",
        "{{ missing }}|{{ d.missing }}|{{ d['missing'] }}|{{ words[99] }}|{{ n.real_missing }}|{{ none.x }}|{{ words.missing }}|{{ s['missing'] }}",
        "{{ uni[0] }}{{ uni[1] }}{{ uni[2] }}{{ uni[-1] }}{{ uni[-2] }} {{ uni | length }}", "{{ nums[1:] }} {{ nums[:-1] }} {{ nums[::-1] }} {{ nums[::2] }} {{ nums[-2:] }} {{ nums[3:1:-1] }} {{ nums[5:] }} {{ nums[:] }} {{ nums[-99:99] }} {{ nums[2::-5] }}",
        "{{ uni[1:3] }} {{ uni[::-1] }} {{ uni[-3:-1] }} {{ uni[:2] }} {{ uni[4:2] }} {{ uni[::2] }} {{ ''[::-1] }} {{ uni[2:-99:-1] }}", "{{ (1, 2, 3)[1:] }} {{ range(5)[1] }} {{ range(5)[-1] }} {{ range(3) }} {{ range(1, 9, 2) }}",
        "{% for k in d %}{{ k }},{% endfor %} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{{ d.get('b') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.keys() }} {{ d.items() }} {{ d.items() | length }}",
        "{{ missing is defined }} {{ d.zip is defined }} {{ d.append is defined }} {{ words.append is defined }}", "{{ messages[0].role }}{{ messages[-1]['role'] }}{{ messages[0]['content'] | trim }}",
        "{{ 'abc'[true] }}", "{{ missing }}|{{ none[0] }}", "{{ words.count('fig') }} {{ words.index('fig') }}", "{{ {1: 'one', 'two': 2}[1] }} {{ {1.0: 'x'}[1] }}",
    ],
    "loops": [
        "{% for w in words %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.previtem }}/{{ loop.nextitem }};{% endfor %}",
        "{% for w in words if w != 'fig' %}{{ loop.index }}{{ w }}{{ loop.length }} {% else %}none{% endfor %}", "{% for w in [] %}x{% else %}empty{% endfor %}", "{% for w in missing %}x{% else %}empty{% endfor %}",
        "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}-{{ b }} {% endfor %}", "{% for i in range(6) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}!",
        "{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}", "{% for c in uni %}[{{ c }}]{% endfor %}",
        "{% set k = 1 %}{% for i in range(3) %}{{ k }}{% set k = k + 1 %}{{ k }} {% endfor %}{{ k }}", "{% for w in words %}{{ loop.cycle('a', 'b') }}{% if loop.changed(w | lower) %}*{% endif %}{% endfor %}",
        "{% for i in range(3) %}{% if loop.first %}{% set z = 5 %}{% endif %}{{ z }}|{% endfor %}", "{% for k, v in d | dictsort %}{{ k }}{% endfor %}", "{% for x in nums | unique %}{{ x }}{{ loop.last }}{% endfor %}",
        "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}", "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}", "{% for i in nums | sort | reverse %}{{ i }}{% endfor %}", "{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}",
        "{% for p in people if p.age > 1 and p.tags is defined %}{{ p.name }}{% endfor %}", "{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    ],
    "set-macro": [
        "{% set a = 1 %}{% set b, c = 2, 3 %}{{ a }}{{ b }}{{ c }}", "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }} {{ ns.b }}|{{ ns }}",
        "{% set x %}  <{{ n }}>  {% endset %}[{{ x }}]", "{% set x | trim | upper %}  a{{ n }}b  {% endset %}[{{ x }}]", "{% macro m(a, b=2, c=b) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=9) }}{{ m(b=5, a=4) }}{{ m() }}",
        "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(6) }}", "{% macro outer() %}{{ inner() }}{% endmacro %}{% macro inner() %}hi{% endmacro %}{{ outer() }}",
        "{% macro m() %}{% set q = 1 %}{{ q }}{% endmacro %}{{ m() }}{{ q }}", "{% macro wrap(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call wrap('b') %}x{{ n }}{% endcall %}",
        "{% macro each(l) %}{% for i in l %}{{ caller(i) }}{% endfor %}{% endmacro %}{% call(v) each(nums) %}[{{ v }}]{% endcall %}", "{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% filter upper %}abc {{ n }}{% endfilter %}", "{% filter trim | replace('a', 'b') %} aa {% endfilter %}!",
        "{% generation %}x{% set inside = 1 %}{% endgeneration %}{{ inside }}", "{% if t %}{% set v = 1 %}{% endif %}{{ v }}", "{% if f %}a{% elif n == 7 %}b{% elif t %}c{% else %}d{% endif %}", "{% set d2 = dict(a=1, b='x') %}{{ d2 }} {{ dict(d2, c=3) }}",
        "{% set x = 1 if f else 2 %}{{ x }}", "{% set a = 'x', %}{{ a }}", "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1) ~ m(2) | upper }}{{ m('a').strip() | length }}", "{% if t: %}x{% endif %}",
    ],
    "filters": [
        "[{{ s | trim }}] [{{ 'xxaxx' | trim('x') }}] {{ s | upper }} {{ s | lower }} {{ 'hello wORLD-foo (bar) o\\'neil' | title }} {{ 'hELLO wORLD' | capitalize }}", "{{ words | join(', ') }} {{ nums | join }} {{ people | join('|', attribute='name') }} {{ [1, none, true] | join('-') }}",
        "{{ words | first }} {{ words | last }} {{ words | length }} {{ d | count }} {{ missing | length }} {{ [] | first }}|", "{{ missing | default('x') }} {{ none | default('x') }} {{ none | default('x', true) }} {{ '' | d('y', true) }} {{ missing | d }}|{{ d.q | default(n) }}",
        "{{ 3.7 | int }} {{ '42' | int }} {{ '3.9' | int }} {{ 'x' | int }} {{ 'x' | int(-1) }} {{ ' 12 ' | int }} {{ 'ff' | int(base=16) }} {{ '2.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ none | int }}", "{{ 3 | string + '!' }} {{ [1] | string }} {{ 'abc' | list }} {{ d | list }} {{ range(3) | list }} {{ (1, 2) | list }}",
        "{{ d | dictsort }} {{ d | dictsort(reverse=true) }} {{ {'a': 2, 'b': 1} | dictsort(by='value') }} {{ {'B': 1, 'a': 2} | dictsort(true) }} {{ d | items | list }}", "{{ people | map(attribute='name') | list }} {{ people | map(attribute='tags', default='none') | list }} {{ words | map('upper') | join(',') }} {{ words | map('replace', 'p', 'q') | list }} {{ [[1, 2]] | map(attribute=0) | list }}",
        "{{ people | selectattr('age', 'gt', 1) | map(attribute='name') | list }} {{ people | rejectattr('tags') | map(attribute='name') | list }} {{ people | selectattr('tags') | list | length }} {{ people | selectattr('name', 'equalto', 'Cy') | first }} {{ messages | rejectattr('role', 'eq', 'system') | list | length }}", "{{ nums | select('odd') | list }} {{ nums | reject('gt', 2) | list }} {{ mixed | select('string') | list }} {{ [0, 1, ''] | select | list }} {{ words | select('in', ['fig']) | list }} {{ mixed | reject('none') | list | length }}",
        "{{ 'aXbX' | replace('X', '-') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'ab' | replace('', '.') }} {{ 1212 | replace('1', 'x') }}", "{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent('> ', first=true, blank=true) }}|{{ 'a\\n' | indent(2) }}", "{{ html | e }} {{ html | escape }} {{ 'x' | safe }} {{ 5 | e }}",
        "{{ words | reverse | list }} {{ uni | reverse }} {{ words | sort }} {{ words | sort(reverse=true) }} {{ words | sort(case_sensitive=true) }} {{ people | sort(attribute='age') | map(attribute='name') | join }} {{ nums | unique | list }} {{ words | unique | list }}", "{{ -5 | abs }} {{ (-5) | abs }} {{ -2.5 | abs }} {{ 2.567 | round(2) }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 42 | round }} {{ 2.1 | round(0, 'ceil') }} {{ 2.99 | round(1, 'floor') }}",
        "{{ nums | sum }} {{ nums | max }} {{ nums | min }} {{ people | sum(attribute='age') }} {{ words | max }} {{ words | min }} {{ people | max(attribute='age') }}", "{{ '%s-%s' | format(1, 'x') }} {{ words | map('length') | list }} {{ words | map('first') | join }}", "{{ 'a,b' | upper | replace(',', ';') | trim | length }}",
        "{{ nested | string }} {{ mixed }} {{ d }}", "{{ [3, 1] | sort | first }} {{ '' | first }}| {{ 'abc' | last }}",
    ],
    "tojson": [
        "{{ d | tojson }} {{ mixed | tojson }} {{ uni | tojson }} {{ both | tojson }} {{ html | tojson }} {{ none | tojson }} {{ true | tojson }} {{ 1.0 | tojson }} {{ big | tojson }} {{ small | tojson }}",
        "{{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ [[], [1, [2]]] | tojson(indent=1) }} {{ nested | tojson(indent='\t') }} {{ [1] | tojson(indent=0) }}", "{{ d | tojson(sort_keys=true) }} {{ d | tojson(separators=(',', ':')) }} {{ uni | tojson(ensure_ascii=true) }} {{ '\\x7f\\x01\\u2028' | tojson }} {{ '\\x7f\\x01' | tojson(true) }}",
        "{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }} {{ (1, 2) | tojson }} {{ 'a\\nb\\t\\\\/\\b\\f\\r' | tojson }}", "{{ people | tojson(indent=4) }}", "{{ messages | tojson }}",
    ],
    "tests": [
        "{{ n is defined }} {{ missing is undefined }} {{ none is none }} {{ n is none }} {{ s is string }} {{ d is mapping }} {{ words is iterable }} {{ n is iterable }} {{ words is sequence }} {{ d is sequence }} {{ s is sequence }} {{ missing is sequence }} {{ missing is iterable }} {{ range(2) is sequence }}",
        "{{ n is number }} {{ t is number }} {{ t is integer }} {{ n is integer }} {{ x is float }} {{ t is boolean }} {{ 1 is boolean }} {{ t is true }} {{ 1 is true }} {{ f is false }} {{ 0 is false }} {{ missing is none }} {{ missing is string }}", "{{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is divisibleby(2) }} {{ n is equalto 7 }} {{ n is eq(7) }} {{ n is ne 7 }} {{ n is lt 8 }} {{ n is gt 8 }} {{ n is ge 7 }} {{ n is le 6 }} {{ n is in [7] }} {{ n is not in [7] }} {{ n is sameas n }}",
        "{{ n is not none }} {{ not n is none }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'x' is not defined }} {{ missing is not defined and t }} {{ raise_exception is defined }} {{ strftime_now is defined }} {{ namespace is callable }} {{ n is callable }}", "{{ 'trim' is filter }} {{ 'zzz' is filter }} {{ 'odd' is test }} {{ d.a is sequence and d.a is not string and d.a is not mapping }}",
        "{{ 5 is number and 5 is not string }} {{ 'a' is in 'abc' }} {{ n is greaterthan 3 }} {{ n is lessthan 3 }}",
    ],
    "strings": [
        "{{ 'a b  c'.split() }} {{ ' a b '.split(' ') }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b c'.split(none, 1) }} {{ 'abc'.split('b')[-1] }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a,b'.rsplit(',') }} {{ 'a b c '.split(maxsplit=1) }}", "[{{ s.strip() }}] [{{ s.lstrip() }}] [{{ s.rstrip() }}] {{ 'xyabyx'.strip('xy') }} {{ 'xxa'.lstrip('x') }} {{ 'axx'.rstrip('x') }} [{{ '\u3000\u00a0a\u2003'.strip() }}]",
        "{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'ab')) }} {{ 'abc'.endswith('bc') }} {{ 'abc'.endswith('x') }} {{ 'a'.startswith('') }}", "{{ 'a-b-c'.replace('-', '+') }} {{ 'a-b-c'.replace('-', '', 1) }} {{ 'abc'.upper() }} {{ 'ABC'.lower() }} {{ \"they're bill's 1st\".title() }} {{ 'aBC dE'.capitalize() }} {{ 'aB'.swapcase() }}", "{{ uni.find('日') }} {{ uni.find('z') }} {{ 'abcabc'.rfind('b') }} {{ 'abc'.find('') }} {{ 'abcabc'.find('b', 2) }} {{ 'abcabc'.index('c') }} {{ 'banana'.count('an') }} {{ 'aaa'.find('a', 1, 1) }}",
        "{{ ','.join(words) }} {{ '-'.join('abc') }} {{ ''.join([]) }} {{ '{} and {}'.format(1, 'b') }} {{ '{0}{1}{0} {{}} {name}'.format('a', 'b', name='N') }}", "{{ '12'.isdigit() }} {{ '1a'.isdigit() }} {{ 'añ'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB1'.isupper() }} {{ 'ab'.islower() }} {{ ''.isalpha() }}", "{{ 'a\\nb\\r\\nc\\n'.splitlines() }} {{ 'a\\nb'.splitlines(true) }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }}",
        "{{ 'ÀÉß'.lower() }} {{ 'àéñ'.upper() }} {{ 'éa'.capitalize() }}", "{{ 'a' 'b'.upper() }} {{ ('a' ~ 'b').upper() }} {{ s.strip().split(', ')[1][0] }}",
    ],
    "errors": [
        "{{ missing.x }}", "{{ missing['x'] }}", "{{ missing() }}", "{{ n() }}", "{{ missing + 1 }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ 1 < 'a' }}", "{{ n | nosuch }}", "{{ n is nosuch }}", "{% for x in n %}{% endfor %}", "{% for x in none %}{% endfor %}", "{{ raise_exception('own words: ' ~ n) }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1 / 0 }}",
        "{% if t %}", "{% for x in nums %}", "{{ n ", "{% if t ", "{# open", "{% endif %}", "{% nosuch %}", "{{ }}", "{{ n n }}", "{{ 'open }}", "{{ (1 }}", "{{ 1) }}", "{% raw %}x", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% set a, b = [1] %}", "{% set d.b = 1 %}", "{{ words.append(1) }}", "{{ d.pop('b') }}", "{{ d.update({}) }}",
        "{{ missing | tojson }}", "{{ range(100001) }}", "{{ none | length }}", "{{ 'abc'.index('z') }}", "{{ 'a'.split('') }}", "{{ nums[::0] }}", "{{ words | join(1, 2, 3) }}", "{{ 'x' in 5 }}", "{{ '%d' % 'a' }}", "{{ '%s %s' % (1,) }}", "{% break %}", "{{ {[1]: 2} }}", "{{ 1 | items | list }}", "{{ -'a' }}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% else %}", "{{ a b }}", "{% set %}", "{{ x.y.z }}", "{{ loop.index }}", "{{ 5 | map('upper') | list }}", "{% if t %}{% endfor %}",
        "{{ n[1:] }}", "{{ missing | indent }}", "{{ 5 | indent }}", "{{ missing | float }}", "{{ missing == missing.x }}", "{{ none.x.y }}", "{{ 'a' * 'b' }}", "{{ [1] + (2,) }}", "{{ [2, 'a'] | sort }}", "{{ 1 ! 2 }}", "{{ ns.x }}{% set ns.x = 1 %}",
    ],
}

FORMATS = {"llama-3.2": "%d %b %Y", "smollm3": "%d %B %Y"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def render(template, variables):
    try:
        return {"expected": _compile_jinja_template(template).render(**variables)}
    except Exception as e:  # TemplateError and what Python raises while rendering
        return {"error": str(e)}


def conversations(name, template):
    extras = [{}, {"tools": TOOLS}, {"enable_thinking": False}, {"date_string": "01 Jan 2025", "builtin_tools": ["brave", "code_interpreter", "weather"]},
              {"tools": TOOLS, "tools_in_user_message": False}]
    for title, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            for extra in extras:
                if any(key not in template for key in extra) or (extra and not prompt):
                    continue
                variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt, **TOKENS, **extra}
                result = render(template, variables)
                if "expected" in result and name in FORMATS:
                    result["expected"] = result["expected"].replace(datetime.now().strftime(FORMATS[name]), f"@TODAY({FORMATS[name]})@")
                yield {"title": title, "variables": variables, **result}


def write(name, data):
    (OUT / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, template in TEMPLATES.items():
        write(name, {"name": name, "template": template, "cases": list(conversations(name, template))})
    for name, templates in SYNTHETIC.items():
        cases = [{"template": t, **render(t, VARIABLES)} for t in templates]
        wrong = [c["template"] for c in cases if ("error" in c) != (name == "errors")]
        if wrong:
            raise SystemExit(f"{name}: not what these are meant to show: {wrong}")
        write("feature-" + name, {"name": name, "variables": VARIABLES, "cases": cases})


if __name__ == "__main__":
    main()

//! The template dialect, and templates that mean harm.

use std::time::{Duration, Instant};

use halyard_text::{ChatInput, ChatTemplate, SpecialTokens, TemplateError};
use serde_json::{Value, json};

fn template(source: &str) -> ChatTemplate {
    let special = SpecialTokens {
        bos_token: Some("<s>".to_owned()),
        eos_token: Some("</s>".to_owned()),
        ..SpecialTokens::default()
    };
    ChatTemplate::new(source.to_owned().into(), &special)
}

fn render_with(source: &str, messages: &Value) -> Result<String, TemplateError> {
    template(source).render(&ChatInput::new(messages))
}

fn render(source: &str) -> Result<String, TemplateError> {
    render_with(source, &json!([{"role": "user", "content": " Hi "}]))
}

#[test]
fn the_dialect() {
    let cases = [
        ("{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}", "<s>Hi</s>"),
        (
            "{% for m in messages %}\n    {%- if m['role'] == 'user' %}\nU:{{ m.content | trim }}\n{%- endif %}\n{% endfor %}",
            "U:Hi",
        ),
        (
            "{%- set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ tools is none }}{{ documents is none }}{{ unk_token is defined }}", "TrueTrueFalse"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}", "[a][1]"),
        (
            "{{ {'a': [1, 2.0, none, true], 'b': '<é>'} | tojson }}",
            "{\"a\": [1, 2.0, null, true], \"b\": \"<é>\"}",
        ),
        ("{{ [1, [2]] | tojson(indent=2) }}", "[\n  1,\n  [\n    2\n  ]\n]"),
        ("{{ 'a,b'.split(',')[1].upper() + 'x' * 3 }}", "Bxxx"),
        ("{{ messages[::-1] | length }}{{ 'ab'[-1] }}", "1b"),
        ("{{ ['a', 'b'] | join('-') }}{{ ','.join(['c', 'd']) }}", "a-bc,d"),
        ("{{ 'aXbX' | replace('X', '.') }}{{ 'aXbX'.replace('X', '') }}", "a.b.ab"),
        ("{{ 'a\nb' | indent(2) }}|{{ 'a\n\nb' | indent(1, first=true) }}", "a\n  b| a\n\n b"),
        (
            "{% set x %}in{% endset %}{{ x }}{{ [1, 'a'] | string }}{{ {'k': tools} ~ 1.0 }}",
            "in[1, 'a']{'k': None}1.0",
        ),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        (
            "{{ messages[0].get('name', 'nobody') }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}",
            "nobodyrolecontent",
        ),
        ("{{ add_generation_prompt }}{{ '{}-{}'.format(1, 'b') }}", "True1-b"),
        (
            "{{ 1 if x is defined else 2 }}{{ 'system' not in messages | map(attribute='role') | list }}",
            "2True",
        ),
        (
            "{% for m in messages recursive %}{{ m.role }}{% endfor %}{% if 1 < 2 < 3 %}y{% endif %}",
            "usery",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(
            render(source).unwrap_or_else(|e| panic!("{source}: {e}")),
            expected,
            "{source}"
        );
    }
    assert_eq!(render("{{ strftime_now('%Y') }}").unwrap().len(), 4);
}

#[test]
fn errors_tell_whose_they_are() {
    let raised = render("{{ raise_exception('Only user messages!') }}").unwrap_err();
    assert!(raised.is_client_error());
    assert_eq!(raised.to_string(), "Only user messages!");
    let within = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(within), Err(TemplateError::Raised(message)) if message == "no"));
    let syntax = render("{% if %}").unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax(_)) && !syntax.is_client_error());
    assert!(template("{% if %}").check().is_err());
    assert!(template("{% if x %{{ x }}{% endif %}").check().is_err());
    let failed = render("{{ messages.nothing.at.all }}").unwrap_err();
    assert!(matches!(failed, TemplateError::Render(_)), "{failed:?}");
    assert!(render_with("x", &json!({"role": "user"})).unwrap_err().is_client_error());
    assert!(render_with("x", &json!(["user"])).unwrap_err().is_client_error());
}

#[test]
fn parts_are_joined_unless_the_template_goes_through_them() {
    let messages = json!([{"role": "user", "content": [
        {"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]);
    let plain = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
    assert_eq!(render_with(plain, &messages).unwrap(), "one\ntwo");
    let parts = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
                 {% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}";
    assert_eq!(render_with(parts, &messages).unwrap(), "<one><two>");
    assert_eq!(render(parts).unwrap(), " Hi ");
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    let error = render_with(plain, &image).unwrap_err();
    assert!(error.is_client_error() && error.to_string().contains("image_url"), "{error}");
}

#[test]
fn the_final_message_can_be_continued() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    let messages =
        json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "The an "}]);
    let input = ChatInput {
        add_generation_prompt: false,
        continue_final_message: true,
        ..ChatInput::new(&messages)
    };
    assert_eq!(template(source).render(&input).unwrap(), "<user>Q</user><assistant>The an");
    let both = ChatInput { add_generation_prompt: true, ..input };
    assert!(template(source).render(&both).unwrap_err().is_client_error());
}

#[test]
fn tools_and_further_variables() {
    let sources = halyard_text::TemplateSources {
        default: "plain{{ flag }}".to_owned(),
        tool_use: Some("tools{{ tools[0].name }}".to_owned()),
    };
    let template = ChatTemplate::new(sources, &SpecialTokens::default());
    let (messages, tools) = (json!([]), json!([{"name": "f"}]));
    let kwargs = json!({"flag": 3, "\u{0}check": 1});
    let input = ChatInput { kwargs: kwargs.as_object(), ..ChatInput::new(&messages) };
    assert_eq!(template.render(&input).unwrap(), "plain3");
    assert_eq!(template.render(&ChatInput { tools: Some(&tools), ..input }).unwrap(), "toolsf");
}

#[test]
fn harmful_templates_end_soon() {
    let cases = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x * 9999 %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x == ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a == b }}",
        "{{ 'a\nb' | indent(99999999999) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ [1] | batch(99999999999999999) }}",
        "{{ ([1] * 99999999999) | length }}{{ ([1] * 99999999999) | list }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
        "{{ [1] | tojson(indent=99999999999) }}{{ range(999999999) }}",
        "{{ ('a' * 9999999) | list | map('upper') | list | join('a' * 9999999) }}",
    ];
    for source in cases {
        let start = Instant::now();
        let result = render(source);
        assert!(result.is_err(), "{source}");
        assert!(start.elapsed() < Duration::from_secs(4), "{source}: {:?}", start.elapsed());
        println!("{:?} {source}: {:?}", start.elapsed(), result.unwrap_err());
    }
}

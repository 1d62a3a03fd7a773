"""What schemathesis is told beside the document: half of its requests ask for what is there, so that they reach what lies
behind the checks of names."""

import schemathesis

MODEL, USER = "tiny-llama", "ann"


def is_of_half(value: object) -> bool:
    return isinstance(value, str) and len(value) % 2 == 0


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict) or not is_of_half(body.get("model")):
        return body
    asked = {name: None for name in ("user_id", "user", "safety_identifier") if is_of_half(body.get(name))}
    return {**body, **asked, "model": MODEL}


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if path_parameters and is_of_half(path_parameters.get("user")):
        return {**path_parameters, "user": USER}
    return path_parameters

from fpdm.evaluation.tables import markdown_table


def test_table():
    assert markdown_table(["model", "sampler", "score"], [["DiT", "DDIM", "7.1"]], text_columns=2) == (
        "| model | sampler | score |\n| --- | --- | ---: |\n| DiT | DDIM | 7.1 |"
    )

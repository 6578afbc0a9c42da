"""DuckDB: one query over the whole file. No stream, no event time, no recovery: it shows how short the time can be."""

import duckdb
from entry import SCORE_MIN, SIZE_MS, main

QUERIES = {
    "windowed": f"""SELECT quiz_id, submitted_at - submitted_at % {SIZE_MS} AS start, count(*) AS n
        FROM read_ndjson('{{lines}}', columns = {{{{quiz_id: 'VARCHAR', submitted_at: 'BIGINT'}}}}) GROUP BY ALL""",
    "stateless": f"""SELECT * FROM read_ndjson('{{lines}}', columns = {{{{submission_id: 'BIGINT', quiz_id: 'VARCHAR',
        user_id: 'VARCHAR', score: 'DOUBLE', submitted_at: 'BIGINT'}}}}) WHERE score >= {SCORE_MIN}""",
    "words": """SELECT word, row_number() OVER (PARTITION BY word) AS n FROM (
        SELECT unnest(string_split(line, ' ')) AS word
        FROM read_csv('{lines}', columns = {{line: 'VARCHAR'}}, header = false, delim = '\t', quote = '"'))""",
}


def run(task):
    """Run one workload's query."""
    database = duckdb.connect(config={"threads": task.cores})
    query = QUERIES[task.workload].format(lines=task.lines)
    database.execute(f"COPY ({query}) TO '{task.out / 'rows.jsonl'}' (FORMAT json)")


if __name__ == "__main__":
    main(dict.fromkeys(QUERIES, run))

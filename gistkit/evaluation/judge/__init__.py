"""A language model as the judge of two models' answers, pair by pair.

outputs A ─┐
outputs B ─┴ pairs ── JudgeRun: Question ──> Endpoint ──> VerdictJournal ──> results file
                                                                             └──> report
"""
